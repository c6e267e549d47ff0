"""The wheel holds the package and its configuration, and its command works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built in a copy so that no build folder is left in it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "nystromformer", "configs"):
        if (CHECKOUT / name).exists():
            subprocess.run(["cp", "-R", str(CHECKOUT / name), str(source)], check=True)
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("nystromformer-*.whl")
    return path


def test_holds_every_source_and_every_yaml(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        f"nystromformer/{p.relative_to(CHECKOUT / 'nystromformer').as_posix()}"
        for p in (CHECKOUT / "nystromformer").rglob("*")
        if p.suffix in (".py", ".cpp", ".h")
    }
    yamls = {
        f"nystromformer/configs/{p.relative_to(CHECKOUT / 'configs').as_posix()}"
        for p in (CHECKOUT / "configs").rglob("*.yaml")
    }
    assert {name for name in held if ".dist-info/" not in name} == sources | yamls
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_command_works_from_anywhere(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # The dependencies of this environment, not downloaded again. A folder of PYTHONPATH is not searched
    # for .pth files, so this environment's editable install of the checkout stays out of sight.
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
        env=outside,
    )
    outside["PYTHONPATH"] = sysconfig.get_path("purelib")
    ended = subprocess.run(
        [str(environment / "bin" / "nystromformer"), "pretrain", "experiment=small_512", "--cfg", "job"],
        cwd="/",
        env=outside,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("name: small_512\n")
    where = subprocess.run(
        [str(python), "-c", "import nystromformer; print(nystromformer.__file__)"],
        cwd="/",
        env=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(environment))
