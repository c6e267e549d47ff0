"""Vectors on disk, of files of any size: a row each in the order of the rows that could be read.

    npy        vectors.npy (rows, d) float32, ids.jsonl (a JSON string a line)
    parquet    vectors.parquet, columns `id` and `vector`; made of the two others when they are whole

The rows that could not be read are in neither.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nystromformer.files import replacing
from nystromformer.tasks.growing import growing, written_so_far

FORMATS = ("npy", "parquet")
VECTORS = "vectors.npy"
IDS = "ids.jsonl"
_AT_ONCE = 8192
"""Rows of a group of a Parquet file."""


def part_of(
    ids: Sequence[str], vectors: Sequence[NDArray[np.float32]], begin: bytes = b""
) -> dict[str, str | bytes]:
    """What some rows add to the two files, the first of them with what a file begins with."""
    numbers = np.stack(vectors).astype("<f4").tobytes() if len(vectors) else b""
    return {
        VECTORS: begin + numbers,
        IDS: "".join(json.dumps(name, ensure_ascii=False) + "\n" for name in ids),
    }


def header(rows: int, width: int) -> bytes:
    """What a .npy file of float32 begins with: as long for any number of rows."""
    content = io.BytesIO()
    told = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(content, told)
    return content.getvalue()


def tell_count(folder: Path, rows: int, width: int) -> None:
    """Write into the grown file how many rows it has."""
    with open(growing(folder, VECTORS), "r+b") as file:
        file.write(header(rows, width))


def write_parquet(folder: Path, target: Path) -> None:
    """Both grown files as one table, a group of rows in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = np.load(growing(folder, VECTORS), mmap_mode="r")
    rows, width = vectors.shape
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), width))])
    ids = (json.loads(line).encode(errors="backslashreplace") for line in written_so_far(folder, IDS))
    with replacing(target) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, _AT_ONCE):
            part = np.asarray(vectors[start : start + _AT_ONCE])
            numbers: Any = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), width)
            names = pa.array(list(islice(ids, len(part))), pa.binary()).cast(pa.string())
            writer.write_table(pa.Table.from_arrays([names, numbers], schema=schema))
