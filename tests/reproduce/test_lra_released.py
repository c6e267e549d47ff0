"""Retrieval, Image and Pathfinder from tiny files in the layouts of the arena's release and of CIFAR-10."""

import numpy as np
import pytest
import torch
from PIL import Image

from nystromformer.errors import UserError
from nystromformer.reproduce.lra.examples import content_of, load_task
from nystromformer.reproduce.lra.model import LraClassifier, configuration
from nystromformer.reproduce.lra.table import lra
from nystromformer.reproduce.lra.training import Cell, train_cell
from nystromformer.settings.compose import compose
from nystromformer.settings.scale import LraScale
from nystromformer.tables import page_of

SCALE = LraScale(
    retrieval_length=6,
    retrieval_steps=2,
    image_steps=2,
    pathfinder_steps=2,
    batch_size=4,
    pixels_batch_size=4,
    landmarks=8,
    curve_every=1,
)
PIXELS = 32 * 32
CONTOURS = "pathfinder32/curv_contour_length_14"


@pytest.fixture
def root(tmp_path):
    """Six pairs a split, 20 + 4 images of CIFAR-10 and 20 of Pathfinder, one of them empty."""
    pairs = tmp_path / "tsv_data"
    pairs.mkdir()
    for name in ("train", "eval", "test"):
        lines = [f'{i % 2}.0\tP{i}\tQ{i}\ta "quoted" {name} {i}\té{i}\n' for i in range(6)]
        (pairs / f"new_aan_pairs.{name}.tsv").write_text("".join(lines), encoding="utf-8")

    batches = tmp_path / "cifar-10-batches-bin"
    batches.mkdir()
    for batch, name in enumerate(["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4",
                                  "data_batch_5", "test_batch"]):  # fmt: skip
        images = np.zeros((4, 1 + 3 * PIXELS), np.uint8)
        images[:, 0] = [(4 * batch + i) % 10 for i in range(4)]
        images[0, 1:] = 255  # white
        images[1, 1 : 1 + PIXELS] = 255  # red
        images[2, 1 + 2 * PIXELS :] = np.arange(PIXELS) % 256  # shades of blue
        images.tofile(batches / f"{name}.bin")

    folder = tmp_path / CONTOURS
    for part in (2, 10):  # 10 comes after 2
        (folder / "imgs" / str(part)).mkdir(parents=True)
        (folder / "metadata").mkdir(exist_ok=True)
        lines = []
        for i in range(10):
            grey = np.full((32, 32), part, np.uint8)
            grey[0, 1] = i
            path = folder / "imgs" / str(part) / f"sample_{i}.png"
            Image.fromarray(grey).save(path)
            lines.append(f"imgs/{part} sample_{i}.png {i} {i % 2} 1.8 14 2 0.75\n")
        (folder / "metadata" / f"{part}.npy").write_text("".join(lines))
    (folder / "imgs" / "2" / "sample_3.png").write_bytes(b"")
    return tmp_path


def test_retrieval_is_the_bytes_of_both_documents(root):
    task = load_task("retrieval", SCALE, str(root))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [6, 6, 6]
    assert task.train.labels == [0, 1, 0, 1, 0, 1]
    assert task.test.input_ids[3] == [[byte + 1 for byte in b'a "quo'], [0xC3 + 1, 0xA9 + 1, ord("3") + 1]]
    assert (task.texts, task.classes, task.longest) == (2, 2, 6)


def test_images_are_grey_as_tensorflow_makes_them(root):
    task = load_task("image", SCALE, str(root))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [18, 2, 4]
    assert task.train.labels == [i % 10 for i in range(18)]
    white, red, blue, black = task.test.input_ids
    assert set(white) == {255 + 1}
    assert set(red) == {int(0.2989 * 255.5) + 1}
    assert blue[:256] == [int(0.114 * shade / 255 * 255.5) + 1 for shade in range(256)]
    assert set(black) == {1}


def test_pathfinder_is_divided_in_the_order_of_its_lists(root):
    task = load_task("pathfinder", SCALE, str(root))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [15, 2, 2]
    told = [(ids[0] - 1, ids[1] - 1) for ids in task.train.input_ids]
    assert told == [(2, i) for i in range(10) if i != 3] + [(10, i) for i in range(6)]
    assert task.train.labels == [float(i % 2) for _, i in told]


def test_the_archives_own_folders_and_fewer_examples(root, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    (outer / "lra_release").mkdir()
    root.rename(outer / "lra_release" / "lra_release")
    for name in ("retrieval", "image", "pathfinder"):
        whole = load_task(name, SCALE, str(outer))
        few = load_task(name, LraScale(retrieval_length=6, released_examples=2), str(outer))
        assert [len(part) for part in (few.train, few.validation, few.test)] == [2, 2, 2]
        assert few.train.input_ids == whole.train.input_ids[:2]
        assert content_of(few) != content_of(whole)


@pytest.mark.parametrize(
    ("name", "path", "content", "told"),
    [
        ("retrieval", "tsv_data/new_aan_pairs.eval.tsv", b"1.0\ta\tb\tc\n", "eval.tsv, line 1: not a label"),
        ("retrieval", "tsv_data/new_aan_pairs.eval.tsv", b"2.0\ta\tb\tc\td\n", "line 1: not a label"),
        ("retrieval", "tsv_data/new_aan_pairs.eval.tsv", b"1.0\ta\tb\tc\t\n", "line 1: not a label"),
        ("retrieval", "tsv_data/new_aan_pairs.test.tsv", b"", "test.tsv is empty"),
        ("image", "cifar-10-batches-bin/data_batch_2.bin", b"12", "data_batch_2.bin does not hold images"),
        ("image", "cifar-10-batches-bin/test_batch.bin", b"\x0b" + bytes(3072), "has a label above 9"),
        ("image", "cifar-10-batches-bin/test_batch.bin", None, "test_batch.bin cannot be read"),
        ("pathfinder", f"{CONTOURS}/metadata/2.npy", b"imgs/2 sample_1.png 1", "2.npy, line 1"),
        ("pathfinder", f"{CONTOURS}/metadata/2.npy", b"imgs/2 no.png 1 1", "there is no"),
        ("pathfinder", f"{CONTOURS}/imgs/2/sample_1.png", b"no", "is no readable image"),
        ("pathfinder", f"{CONTOURS}/metadata/2.npy", b"", None),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named_in_one_line(root, name, path, content, told):
    (root / path).unlink()
    if content is not None:
        (root / path).write_bytes(content)
    if told is None:  # a list of nothing is none of the images
        assert len(load_task(name, SCALE, str(root)).train) == 8
        return
    with pytest.raises(UserError, match=told) as refused:
        load_task(name, SCALE, str(root))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["retrieval", "image", "pathfinder"])
def test_what_is_not_there_says_how_to_name_it(tmp_path, name):
    with pytest.raises(UserError, match="write lra_root=FOLDER"):
        load_task(name, SCALE)
    with pytest.raises(UserError, match=f"lra_root={tmp_path} has no .*: write the folder"):
        load_task(name, SCALE, str(tmp_path))


@pytest.mark.parametrize("name", ["retrieval", "image", "pathfinder"])
def test_each_is_trained_with_and_without_self_pretraining(root, tmp_path, name):
    task = load_task(name, SCALE, str(root))
    for pretrained in (False, True):
        cell = Cell(name, "nystrom", 0, pretrained)
        measured = train_cell(cell, task, SCALE, torch.device("cpu"), tmp_path / f"{pretrained}")
        assert 0 <= measured["accuracy"] <= 1


def test_a_documents_place_in_the_pair_is_told_and_its_padding_is_not(root):
    torch.manual_seed(0)
    task = load_task("retrieval", SCALE, str(root))
    model = LraClassifier(configuration("softmax", task, SCALE), task.texts).eval()
    one, other = torch.tensor([[[5, 6, 7, 0], [9, 8, 0, 0]], [[9, 8, 0, 0], [5, 6, 7, 0]]]).split(1)
    with torch.no_grad():
        logits = [model(ids, (ids > 0).long()) for ids in (one, other, one[..., :3])]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    torch.testing.assert_close(logits[0], logits[2], rtol=0, atol=1e-6)


def test_the_page_has_what_the_folder_has(root, tmp_path):
    sizes = {"retrieval_steps": 2, "curve_every": 1, "released_examples": 4, "batch_size": 2}
    words = [f"scale.lra.{key}={value}" for key, value in sizes.items()]
    words += ["scale.lra.tasks=[listops,retrieval,image]", "scale.lra.attentions=[nystrom,softmax]"]
    words += ["scale.lra.pretrained=[nystrom]"]
    (root / "cifar-10-batches-bin").rename(root / "elsewhere")
    words += [f"lra_root={root}", f"runs_folder={tmp_path}/runs", "pretrain=true"]
    result = lra(compose("reproduce", ["table=lra", "scale=smoke", *words]))
    assert set(result.measured["tasks"]) == {"listops", "retrieval"}
    cells = {(row["task"], row["attention"], row["pretrained"]) for row in result.measured["rows"]}
    kinds = {("nystrom", False), ("nystrom", True), ("softmax", False)}
    assert cells == {(task, *kind) for task in ("listops", "retrieval") for kind in kinds}
    page = page_of(result.blocks)
    assert "| Nyströmformer |" in page
    assert "- Image is absent: lra_root=lra_root has no cifar-10-batches-bin" in page
    assert str(root) not in page
