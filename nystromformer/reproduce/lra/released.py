"""Retrieval, Image and Pathfinder from files: what Long Range Arena's release holds, and CIFAR-10.

    ROOT/tsv_data/new_aan_pairs.train.tsv, .eval.tsv, .test.tsv
        label, two ids, two documents, between tabs; no header and no quoting
    ROOT/pathfinder32/curv_contour_length_14/metadata/N.npy
        text, a line an image: its folder, its name, a number, its label, further numbers
    ROOT/pathfinder32/curv_contour_length_14/imgs/N/sample_K.png                       32 × 32, grey
    ROOT/cifar-10-batches-bin/data_batch_1.bin … data_batch_5.bin, test_batch.bin
        3,073 bytes an image: its label, then 32 × 32 of red, of green, of blue

The release does not hold CIFAR-10, which the arena takes from tensorflow-datasets. Splits are the arena's:
Retrieval's own files; of CIFAR-10's training images the last tenth for validation; of Pathfinder's images the
ninth tenth for validation and the last for the test, in the order of their lists here. All of it may also lie
in the folders lra_release/lra_release, as the archive has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from nystromformer.errors import UserError
from nystromformer.reproduce.lra.task import LraTask, encoded
from nystromformer.settings.scale import LraScale

Rows = tuple[list[list], list[float]]
"""Token ids of each example, and the classes."""
_SIDE = 32
_PIXELS = _SIDE * _SIDE
_COLOURS = np.array([0.2989, 0.587, 0.114]) * 255.5 / 255
"""Weights of red, green and blue in grey, which is rounded down: TensorFlow's `rgb_to_grayscale`."""
_PATHFINDER = "pathfinder32/curv_contour_length_14"
_AGAIN = "unpack Long Range Arena's release again"
_CIFAR = "unpack CIFAR-10's binary version again"


class Absent(UserError):
    """The files of a task are not there."""


def retrieval(root: str | None, scale: LraScale) -> LraTask:
    """Whether one paper cites another, from the bytes of both; raises UserError."""
    files = [_found(root, f"tsv_data/new_aan_pairs.{name}.tsv") for name in ("train", "eval", "test")]
    limit, longest = scale.released_examples or None, scale.retrieval_length
    train, validation, test = (encoded(_pairs(file, longest, limit)) for file in files)
    origin = f"AAN's pairs, cut at {longest:,} bytes each"
    return LraTask("retrieval", train, validation, test, 257, 2, longest, origin)


def _pairs(file: Path, longest: int, limit: int | None) -> Rows:
    rows: list[list] = []
    labels: list[float] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if len(rows) == limit:
                break
            cells = line.rstrip(b"\r\n").split(b"\t")
            texts = cells[3:]
            if len(cells) != 5 or cells[0] not in (b"0", b"1", b"0.0", b"1.0") or not all(texts):
                raise UserError(
                    f"{file}, line {number}: not a label 0.0 or 1.0, two ids and two documents between tabs: "
                    f"correct the line, or {_AGAIN}"
                )
            rows.append([[byte + 1 for byte in text[:longest]] for text in texts])
            labels.append(float(cells[0]))
    if not rows:
        raise UserError(f"{file} is empty: {_AGAIN}")
    return rows, labels


def image(root: str | None, scale: LraScale) -> LraTask:
    """CIFAR-10 in grey, a pixel a token; raises UserError."""
    folder = _found(root, "cifar-10-batches-bin")
    limit = scale.released_examples or None
    rows, labels = _cifar([folder / f"data_batch_{number}.bin" for number in range(1, 6)])
    border = len(rows) * 9 // 10
    last = _cifar([folder / "test_batch.bin"])
    parts = ((rows[:border], labels[:border]), (rows[border:], labels[border:]), last)
    train, validation, test = (encoded((rows[:limit], labels[:limit])) for rows, labels in parts)
    return LraTask("image", train, validation, test, 257, 10, _PIXELS, "CIFAR-10 in grey, 32 × 32 pixels")


def _cifar(files: list[Path]) -> Rows:
    rows: list[list] = []
    labels: list[float] = []
    for file in files:
        try:
            content = np.fromfile(file, np.uint8)
        except OSError as error:
            raise UserError(
                f"{file} cannot be read ({error.strerror}): unpack CIFAR-10's binary version"
            ) from None
        if not len(content) or len(content) % (1 + 3 * _PIXELS):
            raise UserError(f"{file} does not hold images of 3,073 bytes: {_CIFAR}")
        images = content.reshape(-1, 1 + 3 * _PIXELS)
        grey = np.einsum("icp,c->ip", images[:, 1:].reshape(-1, 3, _PIXELS), _COLOURS).astype(np.int64)
        rows += (grey + 1).tolist()
        labels += images[:, 0].astype(float).tolist()
    if max(labels) > 9:
        raise UserError(f"{files[0].parent} has a label above 9: {_CIFAR}")
    return rows, labels


def pathfinder(root: str | None, scale: LraScale) -> LraTask:
    """Whether two marks lie on one path, a pixel a token; raises UserError."""
    folder = _found(root, _PATHFINDER)
    listed = [*_images(folder)]
    if len(listed) < 10:
        raise UserError(
            f"{folder / 'metadata'} lists {len(listed)} images, too few to divide: unpack it again"
        )
    borders = (0, len(listed) * 8 // 10, len(listed) * 9 // 10, len(listed))
    limit = scale.released_examples or None
    parts = (listed[start:end][:limit] for start, end in pairwise(borders))
    train, validation, test = (
        encoded(([_pixels(path) for path, _ in part], [label for _, label in part])) for part in parts
    )
    origin = "Pathfinder, 32 × 32 pixels, contours of 14"
    return LraTask("pathfinder", train, validation, test, 257, 2, _PIXELS, origin)


def _images(folder: Path) -> Iterator[tuple[Path, float]]:
    """Every image that is not empty, as one of the release is, and its label."""
    for file in sorted((folder / "metadata").glob("*.npy"), key=lambda file: (len(file.stem), file.stem)):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            match line.split():
                case [where, name, _, ("0" | "1") as label, *_]:
                    path = folder / where / name
                case _:
                    raise UserError(
                        f"{file}, line {number}: not folder, name, number and label: unpack it again"
                    )
            if not path.is_file():
                raise UserError(f"{file}, line {number}: there is no {path}: {_AGAIN}")
            if path.stat().st_size:
                yield path, float(label)


def _pixels(path: Path) -> list[int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            grey = np.asarray(opened.convert("L"), np.int64)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} is no readable image ({error}): {_AGAIN}") from None
    if grey.shape != (_SIDE, _SIDE):
        raise UserError(f"{path} has {grey.shape[1]} × {grey.shape[0]} pixels: write the folder of 32 × 32")
    return (grey.reshape(-1) + 1).tolist()


def _found(root: str | None, name: str) -> Path:
    """A file or folder of the release; raises Absent where there is none."""
    if root is None:
        raise Absent("its files are not part of the project: write lra_root=FOLDER")
    outer = Path(root).expanduser()
    for place in (outer, outer / "lra_release", outer / "lra_release" / "lra_release"):
        if (place / name).exists():
            return place / name
    raise Absent(f"lra_root={root} has no {name}: write the folder that holds it")
