"""Two results side by side: joined by name, told apart, and refused where they are of different tables."""

import pytest

from nystromformer.cli import main
from nystromformer.intervals import difference_of_means
from nystromformer.reproduce.compare import figures_of
from nystromformer.results import Result, write_result

ABOUT = {
    "result": "finetune",
    "scale": "cpu",
    "told": "small.",
    "configuration": {"rows": 3},
    "machine": {"device": "a CPU", "date": "2026-01-01", "commit": "abc"},
    "command": "nystromformer reproduce table=finetune scale=cpu",
    "seconds": 1.0,
}


def write(folder, measured, **about):
    write_result(folder, Result("A title", measured, ["text"], "headline"), {**ABOUT, **about})
    return folder


def test_the_figures_of_a_result():
    measured = {
        "tasks": {"sst2": {"exact": {"figures": {"accuracy": [0.5, 0.6]}, "seeds": [0, 1], "seconds": 2.0}}},
        "rows": [{"task": "text", "attention": "nystrom", "accuracy": 0.7, "accuracies": [0.7]}],
        "curves": {"64": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]},
        "in_order": True,
        "shown": [1, 2],
        "published": {"BERT": 90.0},
    }
    assert dict(figures_of(measured)) == {
        "tasks, sst2, exact, figures, accuracy": [0.5, 0.6],
        "tasks, sst2, exact, seconds": 2.0,
        "rows, text, nystrom, accuracy": 0.7,
        "rows, text, nystrom, accuracies": [0.7],
        "curves, 64, loss": 2.0,
    }


def test_one_page_of_both(tmp_path, capsys):
    before, after = [0.80, 0.82, 0.81], [0.85, 0.86, 0.87]
    one = write(tmp_path / "old/finetune_cpu", {"figures": {"accuracy": before}, "gap": 1.0, "gone": 3.0})
    other = write(
        tmp_path / "new/finetune_cpu", {"figures": {"accuracy": after}, "gap": 3.0, "come": 4.0},
        configuration={"rows": 4},
    )  # fmt: skip
    assert main(["reproduce", f"compare=[{one},{other}]", f"folder={tmp_path}"]) == 0
    path = tmp_path / "compare_old_finetune_cpu_new_finetune_cpu.md"
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    page = path.read_text()
    low, high = difference_of_means(before, after)
    assert 0 < low < 0.05 < high
    assert f"| figures, accuracy | 0.81 | 0.86 | +0.05 | [{low:+.3g}, {high:+.3g}] |" in page
    assert "| gap | 1 | 3 | +2 |  |" in page
    assert "Only in old/finetune_cpu: gone." in page
    assert "Only in new/finetune_cpu: come." in page
    assert "- of different settings: rows" in page
    assert str(tmp_path) not in page


def test_folders_are_told_apart_by_as_much_as_that_takes(tmp_path, capsys):
    folders = [write(tmp_path / f"{name}/out/finetune_cpu", {"gap": 1.0}) for name in ("old", "new")]
    assert main(["reproduce", f"compare=[{folders[0]},{folders[1]}]", f"folder={tmp_path}"]) == 0
    assert "| figure | old/out/finetune_cpu | new/out/finetune_cpu | difference |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("[{one}]", "compare has 1 folders: write two"),
        ("[{one},{none}]", "none holds no result: write the folder of a table or figure"),
        ("[{one},{lra}]", "is of finetune and"),
        ("[{one},{one}/]", "both folders are finetune_cpu"),
    ],
)
def test_what_cannot_be_compared_is_one_line(words, line, tmp_path, capsys):
    one = write(tmp_path / "finetune_cpu", {"gap": 1.0})
    lra = write(tmp_path / "lra_cpu", {"gap": 1.0}, result="lra")
    words = words.format(one=one, lra=lra, none=tmp_path / "none")
    assert main(["reproduce", f"compare={words}", f"folder={tmp_path}"]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert line in found
    assert not list(tmp_path.glob("compare*"))


def test_a_result_and_a_comparison_at_once_are_refused(tmp_path, capsys):
    assert main(["reproduce", "table=lra", f"compare=[{tmp_path},{tmp_path}]"]) == 2
    assert "write one of all, figure=" in capsys.readouterr().err
