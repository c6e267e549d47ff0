import pytest

from nystromformer.data.documents import SplitRule, text_hash, validation_below


@pytest.mark.parametrize("moved", [None, 5, 2**63])
def test_the_hash_decides_and_one_document_can_be_moved(moved: int | None):
    rule = SplitRule(100, moved)
    for number in (0, 5, 99, 100, 2**63):
        expected = (number < 100) != (number == moved)
        assert rule.of(number) == ("validation" if expected else "train")


def test_a_larger_share_keeps_the_documents_of_a_smaller_one():
    hashes = [text_hash(str(number)) for number in range(1000)]
    small, large = (SplitRule(validation_below(share)) for share in (0.1, 0.3))
    assert {h for h in hashes if small.of(h) == "validation"} < {
        h for h in hashes if large.of(h) == "validation"
    }
