from pathlib import Path

import numpy as np
import pytest

from nystromformer.data.segmentation import Chunks, Counts
from nystromformer.data.shards import ShardReader
from nystromformer.data.splits import SPLITS, SplitWriter
from nystromformer.errors import UserError


def fill(folder: Path, splits: str) -> dict[str, list[int]]:
    """Write a document of two chunks for each letter (t or v); return each split's first tokens."""
    folder.mkdir(exist_ok=True)
    writer = SplitWriter(folder, 100)
    for number, letter in enumerate(splits):
        tokens = np.array([number] * 8, np.int32)
        chunks = Chunks(tokens, np.full(4, 2, np.int32), np.full(2, 2, np.int32))
        writer.add("train" if letter == "t" else "validation", chunks, Counts(1, 4, 8, 2), 2)
    shards, unigram_counts = writer.close()
    readers = {split: ShardReader(folder, shards[split]) for split in SPLITS}
    for split in SPLITS:
        assert writer.counts[split].chunks == len(readers[split])
        assert writer.counts[split].documents == len(readers[split]) // 2
        assert writer.counts[split].sentences == len(readers[split]) * 2
        assert writer.counts[split].tokens == len(readers[split]) * 4
    assert unigram_counts.sum() == writer.counts["train"].tokens
    return {
        split: [int(readers[split][i][0][0]) for i in range(0, len(readers[split]), 2)] for split in SPLITS
    }


@pytest.mark.parametrize(
    ("splits", "train", "validation"),
    [
        ("tvt", [2, 0], [1]),
        ("vtt", [1, 2], [0]),
        ("ttt", [1, 2], [0]),  # the first moves, so that validation is not empty
        ("vv", [0], [1]),
    ],
)
def test_no_split_stays_empty(tmp_path: Path, splits: str, train: list[int], validation: list[int]):
    assert fill(tmp_path, splits) == {"train": train, "validation": validation}


@pytest.mark.parametrize("splits", ["", "t", "v"])
def test_too_few_documents_are_refused(tmp_path: Path, splits: str):
    with pytest.raises(UserError, match=f"too small: {len(splits)} usable documents"):
        fill(tmp_path, splits)
