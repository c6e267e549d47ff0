"""Results as folders: complete or absent, measured once, listed, and shown on one page."""

import json
import re
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from nystromformer import reproduce as package
from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.files import Held
from nystromformer.reproduce.pages import write_index, write_report
from nystromformer.reproduce.result import command_of, configuration_of
from nystromformer.results import Result, read_result, write_result
from nystromformer.settings.compose import compose
from nystromformer.settings.reproduce import ALL, RESULTS, Entry

WORDS = ["figure=nystrom_tutorial", "scale=smoke"]
ABOUT = {
    "result": "nystrom_tutorial",
    "scale": "smoke",
    "told": "small.",
    "configuration": {"draws": 3},
    "machine": {"device": "a CPU", "date": "2026-01-01", "commit": "abc"},
    "command": "nystromformer reproduce figure=nystrom_tutorial scale=smoke",
    "seconds": 1.0,
}


def a_result(headline="Error 0.5", plots=None):
    return Result(
        "A title", {"error": 0.5}, [["| a | b |", "| --- | ---: |", "| x | 1 |"]], headline, plots or {}
    )


def write_picture(measured, path):
    path.write_bytes(b"picture")


def test_every_result_is_registered_and_of_all():
    for entry in RESULTS.values():
        module, _, function = entry.function.partition(":")
        assert callable(getattr(import_module(f"nystromformer.reproduce.{module}"), function))
    figures = {name for name, entry in RESULTS.items() if entry.kind == "figure"}
    assert set(ALL) == {*(figures - {"scaling"}), "efficiency", "glue", "lra"}


@pytest.mark.parametrize("scale", ["paper", "gpu", "cpu", "smoke"])
def test_every_scale_composes_and_tells_itself(scale):
    settings = compose("reproduce", ["all=true", f"scale={scale}"])
    assert settings.scale.name == scale
    assert settings.scale.told.endswith(".")


def test_a_finished_result_is_not_measured_again(tmp_path, capsys):
    words = ["reproduce", *WORDS, f"folder={tmp_path}"]
    path = tmp_path / "nystrom_tutorial_smoke/result.json"
    assert main(words) == 0
    first = path.stat().st_mtime_ns
    page = (path.parent / "README.md").read_text()
    assert page.splitlines()[2].startswith("Scale `smoke`: ")
    assert "`nystromformer reproduce figure=nystrom_tutorial scale=smoke`" in page
    assert str(tmp_path) not in page + path.read_text()
    assert main(words) == 0
    assert path.stat().st_mtime_ns == first
    assert "measured already" in capsys.readouterr().out
    assert main([*words, "again=true"]) == 0
    again = path.stat().st_mtime_ns
    assert again > first
    assert main([*words, "scale.nystrom_tutorial.draws=21"]) == 0  # another configuration
    assert path.stat().st_mtime_ns > again
    found = json.loads(path.read_text())
    assert found["configuration"]["draws"] == 21
    assert found["command"].endswith("'scale.nystrom_tutorial.draws=21'")


def test_a_killed_write_leaves_the_result_before(tmp_path):
    folder = tmp_path / "x_smoke"
    write_result(folder, a_result("Before"), ABOUT)

    def killed(measured, path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_result(folder, a_result("After", {"picture": killed}), ABOUT)
    assert read_result(folder)["headline"] == "Before"
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["x_smoke"]
    write_result(folder, a_result("After", {"picture": write_picture}), ABOUT)
    assert read_result(folder)["headline"] == "After"
    assert [path.name for path in tmp_path.iterdir()] == ["x_smoke"]  # and the leftovers are gone


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    from nystromformer.reproduce.result import read_finished

    folder = tmp_path / "x_smoke"
    write_result(folder, a_result("Before"), ABOUT)
    folder.rename(tmp_path / ".x_smoke.before")
    assert read_finished(folder, ABOUT["configuration"])["headline"] == "Before"


def test_a_full_disk_is_one_line(tmp_path):
    def full(measured, path):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write_result(tmp_path / "x_smoke", a_result(plots={"picture": full}), ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_the_index_lists_what_is_there(tmp_path):
    write_result(tmp_path / "nystrom_tutorial_smoke", a_result(), ABOUT)
    benchmark = {"settings": {"what": "step"}, "machine": ABOUT["machine"]}
    (tmp_path / "step_cpu.json").write_text(json.dumps(benchmark))
    (tmp_path / "step_cpu.md").write_text("# Steps")
    (tmp_path / "other.json").write_text("{}")
    page = write_index(tmp_path).read_text()
    assert (
        "[A title](nystrom_tutorial_smoke/README.md) | smoke | Error 0.5 | a CPU | 2026-01-01 | `abc` |"
        in page
    )
    assert "[step_cpu](step_cpu.md)" in page
    assert "other" not in page


def test_the_report_needs_no_other_file_and_names_what_is_absent(tmp_path):
    folder = tmp_path / "nystrom_tutorial_smoke"
    write_result(folder, a_result(plots={"picture": write_picture}), ABOUT)
    page = write_report(tmp_path, "smoke", ["nystrom_tutorial", "lra"], {"lra": "no <data>"}).read_text()
    assert "<h1>A title</h1>" in page
    assert "<td>x</td>" in page
    assert re.findall(r'src="([^"]*)"', page) == ["data:image/png;base64,cGljdHVyZQ=="]
    assert "no &lt;data&gt;" in page


def test_all_goes_on_after_an_absent_result(tmp_path, capsys, monkeypatch):
    def made(settings):
        return a_result("Made")

    def impossible(settings):
        raise UserError("no such data: write data=THERE")

    module = SimpleNamespace(**{name: impossible if name == "landmarks" else made for name in ALL})
    monkeypatch.setattr(package, "RESULTS", {name: Entry("table", f"module:{name}") for name in ALL})
    monkeypatch.setattr(package, "import_module", lambda _: module)
    monkeypatch.setattr("nystromformer.reproduce.inputs.inputs_of", lambda *_: {})  # nothing is read
    assert main(["reproduce", "all", "scale=smoke", f"folder={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == f"{tmp_path}/report.html"
    assert captured.err == "nystromformer: landmarks is absent: no such data: write data=THERE\n"
    page = (tmp_path / "report.html").read_text()
    assert page.count("Made") == len(ALL) - 1
    assert "no such data" in page


def test_the_configuration_holds_no_folder(tmp_path):
    from dataclasses import replace

    settings = compose("reproduce", ["figure=landmarks", "scale=smoke"])
    plain = configuration_of(settings, "landmarks", "cpu")
    assert plain["checkpoint"] is None
    model = tmp_path / "model"
    model.mkdir()
    mine = replace(settings, checkpoint=str(model), overrides=["data.files=/home/me/texts"])
    first = configuration_of(mine, "landmarks", "cpu")
    told = json.dumps(first) + command_of(mine, "landmarks")
    assert str(tmp_path) not in told
    assert "/home" not in told


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "write one of all, figure="),
        (["figure=longer", "table=starts", "scale=smoke"], "write one of all, figure="),
        (["all", "table=starts"], "write one of all, figure="),
        (["table=glu"], "table='glu' is unknown"),
        (["table=starts"], "starts is not of the paper: write scale=cpu or scale=smoke"),
        (["figure=longer", "scale=sample"], "scale=sample is unknown"),
        (["table=efficiency", "scale.efficiency.lengths=[]"], "scale.efficiency.lengths=[] measures nothing"),
        (["figure=landmarks", "scale.heads.landmarks=512"], "512 landmarks of 512 tokens are exact"),
        (["table=starts", "scale.starts.variants=1"], "variants=1: write 0 for all of them, or at least 2"),
        (["figure=landmarks", "scale=smoke", "scale.heads.length=513"], "512 positions: write at most"),
    ],
)
def test_mistakes(words, line, capsys, tmp_path):
    assert main(["reproduce", *words, f"folder={tmp_path}"]) == 2
    assert line in capsys.readouterr().err


SLOW = """
import sys, time
from nystromformer.cli import main
import nystromformer.reproduce.nystrom_tutorial as module
def slow(settings):
    print("measuring", flush=True)
    time.sleep(120)
module.nystrom_tutorial = slow
main(sys.argv[1:])
"""


def test_result_that_another_process_measures_is_one_line_that_names_it(tmp_path, capsys):
    words = ["reproduce", *WORDS, f"folder={tmp_path}"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "measuring\n"
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"nystrom_tutorial_smoke is in use by process {process.pid} on " in line
    finally:
        process.kill()
        process.wait()
    assert main(words) == 0
    assert (tmp_path / "nystrom_tutorial_smoke/result.json").exists()


def test_all_results_end_at_one_that_another_process_measures(tmp_path, capsys, monkeypatch):
    def in_use(settings, name):
        raise Held(f"{name} is in use by process 1")

    monkeypatch.setattr(package, "produce", in_use)
    assert main(["reproduce", "all", "scale=smoke", f"folder={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"nystromformer: {ALL[0]} is in use by process 1\n"
