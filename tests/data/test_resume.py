"""A preparation that is killed, runs out of disk, or is shared goes on to the same bytes."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nystromformer.cli import main
from nystromformer.data import storage, unfinished
from nystromformer.data.prepare import prepare, prepare_shard
from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.settings import PrepareSettings
from nystromformer.settings.pretrain import ShardOf

from .conftest import text_settings
from .test_prepare import files_of

SHARD = 0.05  # megabytes: about ten blocks of the corpus of these tests
Whole = dict[str, bytes]


def settings_for(corpus_file: Path, folder: Path, **changes: object) -> PrepareSettings:
    return text_settings(corpus_file, folder, shard_megabytes=SHARD, **changes)


@pytest.fixture(scope="module")
def whole(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The files of an uninterrupted preparation."""
    folder = tmp_path_factory.mktemp("whole")
    prepared = prepare(settings_for(corpus_file, folder), show_progress=False)
    assert prepared.manifest["blocks"] >= 8
    assert {path.name for path in prepared.folder.iterdir()} == {
        "manifest.json", "report.json", "report.html", "tokenizer", "train", "validation",
        "unigram_counts.npy",
    }  # fmt: skip
    return files_of(prepared.folder)


def the_only_folder(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    assert not found.name.startswith(".")
    return found


class Killed(BaseException):
    """Stands for SIGKILL where the test needs to know at which step it came."""


@pytest.mark.parametrize("step", [0, 1, 2, 5, 9, 20, 22, 23])
def test_killed_at_a_write_it_goes_on_to_the_same_bytes(
    corpus_file: Path, tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch, step: int
):
    settings = settings_for(corpus_file, tmp_path)
    renames = 0
    real = os.replace

    def replace_or_die(source: str | Path, target: str | Path) -> None:
        nonlocal renames
        if renames == step:
            raise Killed
        renames += 1
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", replace_or_die)
        with pytest.raises(Killed):
            prepare(settings, show_progress=False)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith("text")]
    assert files_of(prepare(settings, show_progress=False).folder) == whole


def test_what_is_whole_is_not_made_again(
    corpus_file: Path, tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
):
    settings = settings_for(corpus_file, tmp_path)
    prepare_shard(settings, ShardOf(1, 2), show_progress=False)
    made: list[str] = []
    real = unfinished.write_shard

    def write(folder: Path, name: str, *arguments: object) -> object:
        made.append(name)
        return real(folder, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(unfinished, "write_shard", write)
    assert files_of(prepare(settings, show_progress=False).folder) == whole
    assert made
    assert all(int(Path(name).stem) % 2 == 1 for name in made)


def test_machines_share_the_work(corpus_file: Path, tmp_path: Path, whole: Whole):
    settings = settings_for(corpus_file, tmp_path)
    with pytest.raises(UserError, match="no shard is complete"):
        prepare(settings, merge=True, show_progress=False)
    for number in (3, 1):
        prepare_shard(settings, ShardOf(number, 3), show_progress=False)
    with pytest.raises(UserError, match=r"blocks 1, 4, 7.* are missing.*shard=2/3 to the end"):
        prepare(settings, merge=True, show_progress=False)
    paths = prepare_shard(settings, ShardOf(2, 3), show_progress=False)
    assert all(path.is_file() and int(path.stem) % 3 == 1 for path in paths)
    assert files_of(prepare(settings, merge=True, show_progress=False).folder) == whole


def test_a_shard_that_disappeared_is_made_again(corpus_file: Path, tmp_path: Path, whole: Whole):
    settings = settings_for(corpus_file, tmp_path)
    paths = prepare_shard(settings, ShardOf(1, 1), show_progress=False)
    paths[0].unlink()
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    assert files_of(prepare(settings, show_progress=False).folder) == whole


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as on a disk with so much left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("size", [1_000, 15_000, 25_000])  # the tokenizer, a shard, the page do not pass
def test_a_disk_that_is_full_is_one_line_and_then_it_goes_on(
    corpus_file: Path, tmp_path: Path, whole: Whole, size: int
):
    settings = settings_for(corpus_file, tmp_path)
    with largest_file(size), pytest.raises(UserError, match="cannot be written") as caught:
        prepare(settings, show_progress=False)
    assert "\n" not in str(caught.value)
    assert "same command again" in str(caught.value)
    assert files_of(prepare(settings, show_progress=False).folder) == whole


def test_a_small_disk(corpus_file: Path, tmp_path: Path):
    """A real full disk: a tmpfs of this test's own, where the kernel allows one."""
    script = f"""
        mount -t tmpfs -o size=200k none {tmp_path} || exit 77
        {sys.executable} -m nystromformer prepare "$@"; echo first $?
        mount -o remount,size=20m {tmp_path}
        {sys.executable} -m nystromformer prepare "$@"; echo second $?
    """
    words = ["data=text", f"data.files=[{corpus_file}]", f"data.folder={tmp_path}", "data.workers=1",
             f"data.shard_megabytes={SHARD}", "tokenizer.vocab_size=500", "model.max_length=64"]  # fmt: skip
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *words],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if "first" not in done.stdout:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    assert "first 2\n" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("nystromformer: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "second 0\n" in done.stdout


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_sigkill_at_twenty_random_moments(corpus_file: Path, tmp_path: Path, whole: Whole):
    """The whole process is killed, again and again, in the middle of whatever it does."""
    words = ["data=text", f"data.files=[{corpus_file}]", "data.validation_fraction=0.1",
             f"data.shard_megabytes={SHARD}", "tokenizer.vocab_size=500", "model.max_length=64"]  # fmt: skip
    draw = random.Random(0)
    command = [sys.executable, "-m", "nystromformer", "prepare", *words]
    started = time.monotonic()
    subprocess.run(
        [*command, f"data.folder={tmp_path}/time", "data.workers=2"], check=True, capture_output=True
    )
    seconds = time.monotonic() - started
    reference = files_of(the_only_folder(tmp_path / "time"))
    kills = 0
    for number in range(20):
        folder = tmp_path / str(number)
        workers = 1 + number % 2
        words_here = [*command, f"data.folder={folder}", f"data.workers={workers}"]
        for _ in range(2 if number < 5 else 1):  # some are killed twice
            process = subprocess.Popen(words_here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(draw.uniform(0.3, 1.0) * seconds)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(words_here, check=True, capture_output=True)
        assert files_of(the_only_folder(folder)) == reference, number
    assert kills >= 15


def test_the_command_line_shares_and_merges(corpus_file: Path, tmp_path: Path, capsys):
    words = ["data=text", f"data.files=[{corpus_file}]", f"data.folder={tmp_path}", "data.workers=1",
             f"data.shard_megabytes={SHARD}", "tokenizer.vocab_size=500", "model.max_length=64"]  # fmt: skip
    assert main(["prepare", *words, "shard=1/1"]) == 0
    assert "train/00000.arrow" in capsys.readouterr().out
    assert main(["prepare", *words, "merge=true", "data.verify=true"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[0])
    PreparedData.open(folder).verify()
    for wrong in ("shard=3/2", "shard=a", "shard=0/2"):
        assert main(["prepare", *words, wrong]) == 2
        assert "write I/N" in capsys.readouterr().err
    assert main(["prepare", *words, "shard=1/2", "merge=true"]) == 2
