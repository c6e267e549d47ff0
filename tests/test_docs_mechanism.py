"""The mechanism of docs/adding_a_mechanism.md, added from outside: one file and one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs/adding_a_mechanism.md").read_text(encoding="utf-8")
FILE, PROGRAM, OPENS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
REST = """
import json, sys
import numpy as np, torch
import mine
from nystromformer.training.flops import forward_flops
assert mine.main(["pretrain", "debug=smoke", "name=gated", "model.attention=gated_mean",
                  "model.gated_mean_reach=3", "training.steps=2", "data.workers=1"]) == 0
found = {}
exec(sys.argv[1], found)
model = found["model"].eval()
layer = model.nystromformer.encoder.layer[0].attention.self
with torch.no_grad():
    layer.gated_mean.scale.fill_(2.5)
model.save_pretrained("again")
again = type(model).from_pretrained("again").eval()
ids = torch.randint(5, model.config.vocab_size, (2, 20))
mask = (torch.arange(20) < torch.tensor([[20], [11]])).long()
out = [each(ids, attention_mask=mask).logits[1, :11] for each in (model, again)]
alone = model(ids[1:, :11]).logits[0]
n = np.array([20, 11])
flops = [forward_flops(model.config.__class__(**{**model.config.to_dict(), "gated_mean_reach": reach}), n, 0)
         for reach in (3, 4)]
assert mine.main(["benchmark", "what=attention", "mechanisms=[gated_mean]", "lengths=[32]", "tokens=64",
                  "heads=2", "head_dim=16", "landmarks=16", "neighbours=16", "repeats=1", "device=cpu",
                  "folder=measured"]) == 0
for word in ("model.gated_mean_reach=0", "model.gated_means_reach=4"):
    assert mine.main(["pretrain", "model.attention=gated_mean", word]) == 2
print(json.dumps({
    "reach": model.config.gated_mean_reach,
    "branch": layer.branch(4),
    "words": layer.describe(32, torch.float32),
    "scale": again.nystromformer.encoder.layer[0].attention.self.gated_mean.scale.unique().tolist(),
    "same": torch.equal(*out),
    "alone": torch.allclose(alone, out[0], atol=1e-5),
    "flops": flops,
    "hidden": model.config.hidden_size * model.config.num_hidden_layers,
}))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "gated_mean.py").write_text(FILE)
    (folder / "mine.py").write_text(PROGRAM)
    (folder / "rest.py").write_text(REST)
    path = os.pathsep.join([str(folder), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "rest.py", OPENS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return folder, json.loads(ran.stdout.splitlines()[-1]), ran.stderr


def test_it_trains_and_its_checkpoint_opens(ran):
    folder, told, _ = ran
    assert "gated_mean_reach: 3" in (folder / "runs/gated/config.yaml").read_text()
    assert told["reach"] == 3
    assert told["scale"] == [2.5]
    assert told["same"]
    assert told["alone"]


def test_the_layer_tells_of_it(ran):
    assert ran[1]["branch"] == "gated_mean"
    assert ran[1]["words"] == "gated_mean of PyTorch's operators"


def test_its_operations_are_counted(ran):
    three, four = ran[1]["flops"]
    assert four - three == 4 * 31 * ran[1]["hidden"]


def test_it_is_measured_beside_the_others(ran):
    rows = json.loads((ran[0] / "measured/attention_cpu.json").read_text())["lengths"]["32"]
    assert rows["nystromformer, gated_mean"]["training_median"] > 0


def test_a_mistake_in_its_settings_is_one_line(ran):
    assert "model.gated_mean_reach=0 is impossible: write at least 1" in ran[2]
    assert "model.gated_mean_reach" in ran[2].splitlines()[-1]


def test_the_line_of_the_package_names_the_same_class():
    assert '"gated_mean": "nystromformer.attention.gated_mean:GatedMean",' in PAGE
    assert PROGRAM.count("gated_mean:GatedMean") == 1
