"""The kernel's library: compiled once, kept where nobody else can write, and never from anywhere else."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nystromformer.attention import build, native

needs_kernel = pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")
pytestmark = needs_kernel

ANOTHER_USER = 54321


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """The kernel, compiled once for all tests."""
    file = tmp_path_factory.mktemp("compiled") / "kernel.so"
    build._compile(build._compiler(), file)
    return file


@pytest.fixture
def compilations(compiled, monkeypatch) -> list[Path]:
    """Where the compiler was asked to write; it gives the kernel at once."""
    asked = []

    def compile_to(compiler: str, file: Path) -> None:
        asked.append(file)
        shutil.copy(compiled, file)

    monkeypatch.setattr(build, "_compile", compile_to)
    return asked


@pytest.fixture
def cache(tmp_path, monkeypatch, compilations) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/nystromformer"


@pytest.fixture
def planted(cache, tmp_path) -> Path:
    """A library under the kernel's name that leaves a mark where it is loaded."""
    cache.mkdir(parents=True, mode=0o700)
    file, mark = cache / f"nystrom-{build.fingerprint()}.so", tmp_path / "mark"
    source = tmp_path / "planted.c"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) void f() {{ fclose(fopen("{mark}", "w")); }}\n'
    )
    subprocess.run([build._compiler(), "-shared", "-fPIC", "-x", "c", source, "-o", file], check=True)
    file.chmod(0o700)
    return file


def is_kernel(library: ctypes.CDLL) -> bool:
    return hasattr(library, "nystrom_forward")


def test_kept_and_compiled_once(cache, compilations, caplog):
    umask = os.umask(0o002)  # Debian's for ordinary users: the group may write what is made
    try:
        assert is_kernel(build.load())
        assert is_kernel(build.load())
    finally:
        os.umask(umask)
    assert len(compilations) == 1
    (kept,) = cache.iterdir()
    assert build.fingerprint() in kept.name
    assert [path.stat().st_mode & 0o777 for path in (cache, kept)] == [0o700, 0o700]
    assert caplog.text == ""


def test_a_mark_shows_what_is_loaded(planted, tmp_path):
    """So that its absence in the tests below says something."""
    assert not is_kernel(build.load())
    assert (tmp_path / "mark").exists()


def test_a_file_that_others_can_write_is_made_anew(planted, tmp_path, compilations):
    planted.chmod(0o770)
    assert is_kernel(build.load())
    assert not (tmp_path / "mark").exists()
    assert len(compilations) == 1
    assert planted.stat().st_mode & 0o777 == 0o700


@needs_root
def test_a_file_of_another_user_is_made_anew(planted, tmp_path):
    os.chown(planted, ANOTHER_USER, ANOTHER_USER)
    assert is_kernel(build.load())
    assert not (tmp_path / "mark").exists()
    assert planted.stat().st_uid == os.geteuid()


def test_a_link_is_not_followed(planted, tmp_path):
    elsewhere = planted.rename(tmp_path / "elsewhere.so")
    planted.symlink_to(elsewhere)
    assert is_kernel(build.load())
    assert not (tmp_path / "mark").exists()
    assert not planted.is_symlink()


@pytest.mark.parametrize("content", [b"", b"\x7fELF and no more"])
def test_a_damaged_file_is_made_anew(planted, content):
    planted.write_bytes(content)
    assert is_kernel(build.load())
    assert planted.stat().st_size > 1000


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(planted, tmp_path, mode, caplog, compilations):
    planted.parent.chmod(mode)
    assert is_kernel(build.load())
    assert not (tmp_path / "mark").exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "compiled by each process anew" in line
    assert f"other users can write {planted.parent}" in line
    assert f"write chmod go-w {planted.parent}" in line
    (file,) = compilations
    assert planted.parent not in file.parents
    assert not file.parent.exists()


@needs_root
def test_a_folder_of_another_user_is_not_used(planted, tmp_path, caplog):
    os.chown(planted.parent, ANOTHER_USER, ANOTHER_USER)
    assert is_kernel(build.load())
    assert not (tmp_path / "mark").exists()
    assert f"{planted.parent}, whose files are loaded as code, belongs to another user" in caplog.text


def test_a_cache_that_cannot_be_made(cache, tmp_path, caplog, compilations):
    (tmp_path / "cache").write_text("a file")
    assert is_kernel(build.load())
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{cache}: Not a directory" in line


def test_a_full_cache(cache, monkeypatch, caplog, compilations):
    elsewhere = build._compile

    def on_full_disk(compiler: str, file: Path) -> None:
        if cache in file.parents:
            raise subprocess.CalledProcessError(1, compiler, stderr="fatal: No space left on device\n")
        elsewhere(compiler, file)

    monkeypatch.setattr(build, "_compile", on_full_disk)
    assert is_kernel(build.load())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "No space left on device" in line
    assert list(cache.iterdir()) == []


def test_nowhere_to_write(cache, tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    native.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert native.library() is None
    finally:
        native.library.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("attention runs on PyTorch's operators")
    assert str(tmp_path / "missing") in line


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for named, expected in (("", "/home/me/.cache"), ("relative", "/home/me/.cache"), ("/a", "/a")):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert build.cache_folder() == Path(expected) / "nystromformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_folder() == Path("/home/me/.cache/nystromformer")


@pytest.mark.parametrize("become", ["os.setgroups([]); os.setgid(54321); os.setuid(54321)", "pass"])
def test_a_user_without_home_and_name_has_attention(become):
    """As in a container that is started under a number."""
    if become != "pass" and os.geteuid() != 0:
        pytest.skip("only root can become a user that no list names")
    program = f"""
import os, pwd, torch
from nystromformer import nystrom_attention
from nystromformer.attention import native
del os.environ["HOME"]
{become}
pwd.getpwuid = {{}}.__getitem__  # what it does for the other user by itself
x = torch.randn(1, 1, 40, 16)
assert nystrom_attention(x, x, x, num_landmarks=16).isfinite().all()
print(native.library() is not None)
"""
    environment = {**os.environ, "HOME": "/home/me"}
    environment.pop("XDG_CACHE_HOME", None)
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=250
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stderr.splitlines()
    if become == "pass" or ended.stdout == "True\n":
        assert "compiled by each process anew" in line
        assert "HOME is not set and no list of users has this one" in line
    else:  # the other user may not read this installation
        assert line.startswith("attention runs on PyTorch's operators")


def test_processes_that_start_together_share_one_file(tmp_path):
    program = "from nystromformer.attention import build; print(build.load().problem_size())"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (size,) = {process.communicate(timeout=250)[0].strip() for process in started}
    assert int(size) == ctypes.sizeof(native._Problem)
    (file,) = (tmp_path / "nystromformer").iterdir()
    assert file.name == f"nystrom-{build.fingerprint()}.so"


def test_another_cpu_gets_a_file_of_its_own(monkeypatch):
    here = build.fingerprint()
    monkeypatch.setattr(build, "_cpu", lambda: "another")
    assert build.fingerprint() != here
