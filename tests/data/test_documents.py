from nystromformer.data.documents import text_hash, validation_below


def test_the_hash_never_changes():
    # Another hash would silently move documents between training and validation.
    assert text_hash("Nyström") == 7325510361447204539


def test_the_split_has_its_share():
    share = sum(text_hash(str(number)) < validation_below(0.1) for number in range(10_000)) / 10_000
    assert abs(share - 0.1) < 3 * (0.09 / 10_000) ** 0.5
