"""Each mistake ends in one clear line and exit code 2, and leaves nothing half-written."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from nystromformer.cli import main

from .conftest import write_corpus


def fails(capsys, arguments: list[str], *words: str) -> None:
    assert main(["pretrain", *arguments]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    messages = [line for line in printed.splitlines() if line.startswith("nystromformer: ")]
    assert len(messages) == 1, printed
    assert printed.rstrip().endswith(messages[0])
    for word in words:
        assert word in messages[0], messages[0]


def files(tmp_path: Path) -> list[Path]:
    """What a failed command left behind; locks and remembered hashes are not half-written results."""
    found = [path for folder in ("runs", "new") for path in (tmp_path / folder).rglob("*")]
    beside = [path for path in found if path.suffix == ".lock" or path.name == ".content_hashes.json"]
    return [path for path in found if path.is_file() and path not in beside]


@pytest.fixture
def own(overrides, tmp_path):
    """The overrides with a folder of prepared data of this test's own, and a file to spoil."""
    kept = [o for o in overrides if not o.startswith(("data.files", "data.folder"))]
    return [*kept, f"data.folder={tmp_path / 'new'}"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["empty.txt", "empty"]),
        ("binary.txt", b"\x00\x01\x02\xff" * 500, ["binary.txt"]),
        ("latin.txt", b"A good start.\n\nThen caf\xe9 came.\n", ["latin.txt", "offset 23"]),
        ("bad.jsonl", b'{"text": "One. Two."}\n{"body": "Three."}\n', ["bad.jsonl", "2", "text"]),
        ("cut.jsonl", b'{"text": "One. Two."}\n{"text": "Thr\n', ["cut.jsonl", "2"]),
        ("small.txt", b"Just this.\n", ["data"]),
        ("notes.docx", b"words", ["notes.docx", ".txt"]),
    ],
)
def test_bad_files(own, tmp_path, capsys, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    fails(capsys, [*own, f"data.files=[{file}]"], *words)
    assert files(tmp_path) == []


def test_no_such_file(own, tmp_path, capsys):
    fails(capsys, [*own, f"data.files=[{tmp_path}/absent.txt]"], "absent.txt")
    fails(capsys, [*own, f"data.files=['{tmp_path}/*.jsonl']"], "*.jsonl")
    assert files(tmp_path) == []


def test_an_unwritable_run_folder(overrides, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    fails(capsys, [*overrides, f"runs_folder={tmp_path / 'file'}"], "cannot write", "runs_folder=")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_without_permission(overrides, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    fails(capsys, [*overrides, f"runs_folder={tmp_path / 'closed'}"], "cannot write", "runs_folder=")


def test_a_tokenizer_without_a_mask_token(overrides, tmp_path, capsys):
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")),
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fails(capsys, [*overrides, f"tokenizer.path={tmp_path / 'tokenizer'}"], "mask_token", "tokenizer.path=")


def test_a_run_of_another_configuration(overrides, tmp_path, capsys):
    assert main(["pretrain", *overrides, "training.steps=2"]) == 0
    capsys.readouterr()
    metrics = (tmp_path / "runs/smoke/metrics.jsonl").read_text()
    changed = [*overrides, "training.steps=2", "model.hidden_size=32"]
    fails(capsys, changed, "model.hidden_size=64", "name=")
    assert (tmp_path / "runs/smoke/metrics.jsonl").read_text() == metrics


def test_a_checkpoint_of_another_shape(overrides, tmp_path, capsys):
    """The configuration file was lost or edited, and the checkpoint does not fit the model."""
    assert main(["pretrain", *overrides, "training.steps=2"]) == 0
    capsys.readouterr()
    (tmp_path / "runs/smoke/config.yaml").unlink()
    fails(capsys, [*overrides, "training.steps=2", "model.hidden_size=32"], "checkpoints/step-2")


def test_start_from_nothing(overrides, tmp_path, capsys):
    changes = ["init=checkpoint", f"init.path={tmp_path / 'absent'}"]
    fails(capsys, [*overrides, *changes], "init.path=", "absent")
    assert not (tmp_path / "runs").exists()


def test_the_hub_out_of_reach(overrides, tmp_path, capsys):
    kept = [o for o in overrides if not o.startswith("data")]
    changes = ["data=bookcorpus_wikipedia", f"data.folder={tmp_path / 'new'}", "data.max_documents=10"]
    fails(capsys, [*kept, *changes], "wikimedia/wikipedia")
    assert files(tmp_path) == []


def test_micro_batches_that_do_not_fit(overrides, capsys):
    fails(capsys, [*overrides, "training.micro_batch_size=3"], "training.micro_batch_size=3", "divisor of 8")


def test_cuda_graphs_where_there_are_none(overrides, tmp_path, monkeypatch, capsys):
    wanted = [*overrides, "training.cuda_graphs=true"]
    fails(capsys, wanted, "training.cuda_graphs=true", "cpu", "write false")
    fails(
        capsys, [*wanted, "model.gradient_checkpointing=true"], "model.gradient_checkpointing", "write false"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, wanted, "training.cuda_graphs=true is for one process, not for 2", "write false")
    assert files(tmp_path) == []


def test_a_corpus_of_one_document_is_too_small(own, tmp_path, capsys):
    file = write_corpus(tmp_path / "one.txt", documents=1)
    fails(capsys, [*own, f"data.files=[{file}]"], "data")
    assert files(tmp_path) == []


def test_metrics_stay_json(overrides, tmp_path):
    assert main(["pretrain", *overrides, "training.steps=2"]) == 0
    for line in (tmp_path / "runs/smoke/metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["kind"] in ("train", "validation")
