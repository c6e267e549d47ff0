"""figure=scaling: laws by known answers, what is computed by formulas, and the page on runs made up."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.reproduce.compare import figures_of
from nystromformer.reproduce.inputs import inputs_of
from nystromformer.reproduce.runs import composed_run
from nystromformer.reproduce.scaling import base, curves
from nystromformer.reproduce.scaling.curves import EXACT, NYSTROM, column, equal_loss, parameters_of, reached
from nystromformer.reproduce.scaling.law import fit_law
from nystromformer.reproduce.scaling.page import laws_of, result_of
from nystromformer.settings.compose import compose
from nystromformer.settings.scale import ScalingScale
from nystromformer.tables import page_of
from nystromformer.training.flops import training_flops

SIZES = {"1 × 64": 1e5, "2 × 128": 4e5, "3 × 192": 1.3e6}
TRUE = {"E": 2.0, "A_N": 1.0, "A_D": 1.2, "α_N": 0.35, "α_D": 0.4}
WORDS = ["figure=scaling", "scale=smoke"]


def points(noise: float, *, sizes=SIZES, true=TRUE, seed=0):
    """Loss, N and D, run and size of each of 9 validations of 9 runs, as `fit_law` takes them."""
    rng = np.random.default_rng(seed)
    data = np.linspace(0.2, 1, 9) * 2.5e6
    middles = {name: np.exp(np.log(x).mean()) for name, x in (("N", list(sizes.values())), ("D", data))}
    rows = []
    for size, n in sizes.items():
        for length in (128, 256, 512):
            of_run = rng.normal(0, noise)
            for d in data:
                loss = true["E"] + true["A_N"] * (n / middles["N"]) ** -true["α_N"]
                loss += true["A_D"] * (d / middles["D"]) ** -true["α_D"]
                rows.append((loss * np.exp(of_run + rng.normal(0, noise)), n, d, f"{size} {length}", size))
    loss, n, d, runs, of = zip(*rows, strict=True)
    return np.array(loss), {"N": np.array(n), "D": np.array(d)}, runs, of


def a_curve(size, length, attention, slower=1.0, speed=1000.0):
    """A run by the true law in tokens / slower."""
    tokens = np.linspace(0.1, 1, 10) * 2.5e6
    loss = 2 + (SIZES[size] / 4e5) ** -0.3 + 1.2 * (tokens / slower / 1e6) ** -0.4
    flops = tokens * SIZES[size] * 6 * (1.5 if attention == EXACT else 1)
    return {
        "size": size, "length": length, "attention": attention, "parameters": int(SIZES[size]),
        "parameters_with_embeddings": int(SIZES[size]) + 300_000, "warmup_steps": 100,
        "convolution": 15, "first_loss": 6.6,
        "tokens_per_second": speed, "predictions": 7000,
        "points": [
            {"step": 100 * n, "tokens": d, "flops": c, "seconds": d / speed, "loss": one}
            for n, (d, c, one) in enumerate(zip(tokens, flops, loss, strict=True), start=1)
        ],
    }  # fmt: skip


def some_curves():
    return [
        a_curve(size, length, attention, *((1.0, 2000.0) if attention == NYSTROM else (1.3, 1000.0)))
        for size in SIZES
        for length in (128, 256, 512)
        for attention in (EXACT, NYSTROM)
    ]


def with_losses(curve, losses):
    points = zip(curve["points"], losses, strict=True)
    return {**curve, "points": [{**point, "loss": float(loss)} for point, loss in points]}


@pytest.fixture(scope="module")
def a_base():
    return base.predictions(compose("reproduce", WORDS).scale.scaling, None)


def test_without_noise_the_law_is_found():
    law = fit_law(*points(0.0), draws=5)
    assert law.parameters == pytest.approx(TRUE, rel=1e-3)
    assert law.residual < 1e-6
    loss, quantities, *_ = points(0.0)
    np.testing.assert_allclose(law.loss(quantities), loss, rtol=1e-6)


def test_with_noise_the_true_parameters_are_within_the_intervals_and_these_are_no_wider_than_needed():
    law = fit_law(*points(0.001), draws=40)
    for name, value in TRUE.items():
        low, high = law.intervals[name]
        assert low - 0.1 * value < value < high + 0.1 * value
        assert high - low < value
    assert law.unidentified == []


def test_an_outlier_moves_the_law_little():
    loss, *rest = points(0.0)
    loss[40] *= 1.2
    assert fit_law(loss, *rest, draws=3).parameters == pytest.approx(TRUE, rel=0.02)


def test_what_the_points_do_not_say_is_called_unidentified():
    """Without an effect of the size, its power may be any."""
    law = fit_law(*points(0.002, true={**TRUE, "A_N": 0.0}), draws=20)
    assert {"A_N", "α_N"} & set(law.unidentified)


def test_without_an_irreducible_loss_in_reach_nothing_is_called_known():
    """A pure power: E is at its end, and what A and α are depends on it."""
    law = fit_law(*points(0.003, true={**TRUE, "E": 0.0, "A_N": 2.0, "A_D": 2.0, "α_D": 0.1}), draws=20)
    assert law.unidentified == list(TRUE)


def test_too_few_runs_or_points_are_refused():
    loss, quantities, runs, sizes = points(0.0)
    for count in (5, 18):  # of one run; of two
        few = {name: values[:count] for name, values in quantities.items()}
        with pytest.raises(UserError, match="write at least three"):
            fit_law(loss[:count], few, runs[:count], sizes[:count])


def test_a_curve_is_read_where_it_first_reaches_a_loss():
    points = [{"loss": loss, "tokens": at} for loss, at in ((5.0, 10.0), (5.5, 20.0), (4.0, 30.0))]
    curve = {"first_loss": 6.0, "points": points}
    assert reached(curve, 5.5, "tokens") == 5.0
    assert reached(curve, 5.0, "tokens") == 10.0
    assert reached(curve, 4.5, "tokens") == 20.0


def test_equal_loss_is_the_factor_between_two_curves():
    found = equal_loss(some_curves())
    assert len(found) == 9
    for one in found:
        assert one["tokens"] == pytest.approx(1.3, rel=0.02)
        assert one["flops"] == pytest.approx(1.5 * 1.3, rel=0.02)
        assert one["seconds"] == pytest.approx(2 * 1.3, rel=0.02)


def test_where_a_run_learned_nothing_there_is_no_ratio():
    found = equal_loss([with_losses(curve, [7.0] * 10) for curve in some_curves()])
    assert {one[name] for one in found for name in ("tokens", "flops", "seconds")} == {None}


def test_the_all_reduce_is_nothing_alone_and_grows_with_gpus_and_parameters():
    alone, *more = [base.all_reduce_seconds(10**8, gpus, 5e10) for gpus in (1, 2, 8, 64)]
    assert alone == 0
    assert more == sorted(more)
    assert more[0] == 4e8 / 5e10  # each sends its half twice
    assert base.all_reduce_seconds(2 * 10**8, 8, 5e10) == 2 * more[1]


def test_a_step_waits_for_what_the_backward_pass_does_not_hide():
    scale = ScalingScale(node_bandwidth=100, network_bandwidth=10)
    assert base.step_seconds(3.0, 10**8, 64, scale) == 3.0
    exchange = base.all_reduce_seconds(10**8, 64, 1e10)
    assert base.step_seconds(0.03, 10**8, 64, scale) == pytest.approx(0.01 + exchange)
    assert base.step_seconds(0.003, 10**8, 8, scale) == pytest.approx(
        0.001 + exchange / 10 * (7 / 8) / (63 / 64)
    )


@pytest.mark.parametrize("attention", [EXACT, NYSTROM])
def test_flops_and_parameters_are_those_of_the_model(attention):
    config = base.base_config(1024, attention)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (12, 768, 30528)
    one = training_flops(config, np.array([1024]), 154) / 1024
    assert base.flops_per_token(config, 1024) == pytest.approx(one, rel=1e-3)
    everything, embeddings = parameters_of(config)
    assert embeddings == (30528 + (1024 + 2) + 2) * 768  # the position table has two more, as transformers'
    layer = 12 * 768**2 + 13 * 768 + (12 * 33 if attention == NYSTROM else 0)
    heads = 2 * (768**2 + 768) + 2 * 768 + 30528 + 2 * 768 + 2  # pooler, transform, norm, bias, order
    assert everything == embeddings + 2 * 768 + 12 * layer + heads


def step_file(path, **changes):
    names = (base.OURS, base.EXACT_MODEL)
    mfu = changes.pop("mfu", {1024: 0.2, 4096: 0.4})
    content = {
        "machine": {"device": "NVIDIA H100 80GB HBM3"}, "peak_flops": 1e15,
        "settings": {"what": "step", "layers": 12, "hidden": 768, **changes},
        "lengths": {n: {x: {"model_flop_utilisation": share} for x in names} for n, share in mfu.items()},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return str(path)


def test_base_is_computed_from_a_measured_step(tmp_path):
    found = base.predictions(ScalingScale(), step_file(tmp_path / "step.json"))
    rows = {(row["length"], row["attention"]): row for row in found["rows"].values()}
    sources = {n: rows[n, EXACT]["mfu_source"] for n in base.LENGTHS}
    assert sources == {
        512: "of the nearest length", 1024: "measured", 2048: "interpolated", 4096: "measured",
        8192: "of the nearest length",
    }  # fmt: skip
    assert rows[2048, NYSTROM]["mfu"] == pytest.approx(0.3)
    one = rows[1024, EXACT]
    assert one["tokens_per_second"][1] == pytest.approx(0.2 * 1e15 / one["flops_per_token"])
    assert one["days"][1] == pytest.approx(0.5e6 * 256 * 512 / one["tokens_per_second"][1] / 86_400)
    for row in found["rows"].values():
        one, eight, many = row["tokens_per_second"].values()
        assert one < eight <= 8 * one * (1 + 1e-9)
        assert eight < many <= 64 * one * (1 + 1e-9)
    assert not found["assumed"]


def test_the_measured_speed_of_a_step_comes_out_again():
    path = base.Path(__file__).parents[2] / "docs/results/step_cuda_bfloat16.json"
    measured = json.loads(path.read_text())["lengths"]["4096"][base.OURS]["tokens_per_second"]
    row = base.predictions(ScalingScale(), str(path))["rows"]["4096 tokens, Nyström"]
    assert row["tokens_per_second"][1] == pytest.approx(measured, rel=2e-3)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"what": "attention"}, "is no result of `nystromformer benchmark what=step`"),
        ({"layers": 4}, "is of 4 layers of 768: write one of layers=12 hidden=768"),
        ({"mfu": {1024: None}}, "has no MFU of nystromformer, exact attention and nystromformer"),
    ],
)
def test_a_step_file_that_says_nothing_of_base_is_one_line(tmp_path, capsys, changes, line):
    path = step_file(tmp_path / "step.json", **changes)
    assert main(["reproduce", *WORDS, f"step={path}", f"folder={tmp_path}/out"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"step={path} {line}" in told
    assert not (tmp_path / "out/scaling_smoke").exists()


@pytest.mark.parametrize("content", [None, "no JSON", "[1]", "{}", '{"settings": 3}'])
def test_a_file_that_is_no_result_is_one_line(tmp_path, content):
    if content:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="is no result of"):
        base.read_step(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["scale.scaling.exact=['training.seed=3']"], "scale.scaling: scaling_1_32_exact_"),
        (["scale.scaling.lengths=[32]"], "has 1 different scale.scaling.lengths: write at least 2 for a fit"),
        (["scale.scaling.lengths=[32,32]"], "has 1 different scale.scaling.lengths"),
        (
            ["scale.scaling.sizes=['model.hidden_size=32']"],
            "has 1 different scale.scaling.sizes: write at least 3",
        ),
        (["scale.scaling.gpu=abacus"], "scale.scaling.gpu=abacus is not in the table of peaks"),
        (["scale.scaling.mfu=1.2"], "scale.scaling.mfu=1.2 is impossible"),
        (["scale=paper"], "scaling is not of the paper"),
        (["step=x", "figure=small"], "step is of figure=scaling"),
    ],
)
def test_mistakes(words, line, capsys, tmp_path):
    assert main(["reproduce", *WORDS, *words, f"folder={tmp_path}"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu"])
def test_every_scale_has_runs_on_the_same_batches_with_as_many_tokens_a_step(name):
    settings = compose("reproduce", ["figure=scaling", f"scale={name}"])
    names = set()
    for length, words in curves.words_of(settings.scale.scaling):
        exact, nystrom = (composed_run(settings, each) for each in words.values())
        assert (exact.model.attention, nystrom.model.attention) == ("softmax", "nystrom")
        assert exact.data == nystrom.data
        assert exact.training == nystrom.training
        assert exact.training.decay == "none"
        assert exact.training.global_batch_size * length == settings.scale.scaling.tokens
        assert nystrom.model.num_landmarks < length
        names |= {exact.name, nystrom.name}
    scale = settings.scale.scaling
    assert len(names) == 2 * len(scale.sizes) * len(scale.lengths)
    assert len(scale.sizes) == 3


def test_a_changed_step_file_is_another_input(tmp_path):
    settings = compose("reproduce", WORDS)
    path = tmp_path / "step.json"
    seen = []
    for mfu in (0.2, 0.3):
        step_file(path, mfu={1024: mfu})
        seen.append(inputs_of(replace(settings, step=str(path)), "scaling")["step"])
    assert None not in seen
    assert seen[0] != seen[1]
    assert "step" not in inputs_of(settings, "scaling")


def test_tokens_and_flops_of_a_point_are_those_of_the_steps_before_it():
    """Also where a run went on: its first stretch after that is shorter."""
    events = [
        {"step": step, "tokens_per_second": 5.0 * speed, "steps_per_second": speed}
        for step, speed in ((10, 2.0), (13, 7.0), (20, 1.0))
    ]
    assert list(curves._sums(events, "tokens_per_second")) == [50.0, 15.0, 35.0]


def test_the_page_tells_what_is_computed_and_what_is_not_identified(tmp_path, a_base):
    result = result_of(some_curves(), a_base, draws=5)
    page = page_of(result.blocks)
    for told in (
        "**Computed, nothing here was run.**",
        "assumed, not measured",
        "## 12 layers of 768 (computed)",
    ):
        assert told in page
    assert "| **512 tokens**, geometric mean |  | 1.30 | 1.95 | 2.59 |" in page
    assert (
        "At 512 tokens exact attention needs 1.95 times the FLOPs and 2.59 times the time" in result.headline
    )
    result.plots["scaling"](result.measured, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    figures = dict(figures_of(json.loads(json.dumps(result.measured))))  # as `compare` reads them
    assert (
        figures["runs, 2 × 128, 512 tokens, exact, points, loss"] == some_curves()[10]["points"][-1]["loss"]
    )
    assert figures["equal_loss, 2 × 128, 512 tokens, flops"] == pytest.approx(1.95, rel=0.01)
    rng = np.random.default_rng(0)
    flat = [with_losses(curve, 5 + 0.01 * rng.normal(size=10)) for curve in some_curves()]
    page = page_of(result_of(flat, a_base, draws=10).blocks)
    assert "**Not identified**" in page
    assert "| not identified |" in page


def test_validations_of_the_warm_up_are_not_fitted():
    spoiled = []
    for curve in (c for c in some_curves() if c["attention"] == EXACT):
        losses = [9.0] * 4 + [point["loss"] for point in curve["points"][4:]]
        spoiled.append({**with_losses(curve, losses), "warmup_steps": 400})
    assert laws_of(spoiled, draws=2)["N, D"].residual < 0.01


@pytest.mark.slow  # twelve runs
def test_scaling_at_smoke_size(tmp_path, capsys):
    folders = [f"{name}={tmp_path}/{name}" for name in ("folder", "runs_folder", "prepared_folder")]
    words = ["reproduce", *WORDS, *folders, 'overrides=["data.workers=1"]']
    assert main(words) == 0
    found = json.loads((tmp_path / "folder/scaling_smoke/result.json").read_text())["measured"]
    runs = list(found["runs"].values())
    assert len(runs) == 12
    for exact, nystrom in zip(runs[::2], runs[1::2], strict=True):
        assert column(exact, "tokens") == pytest.approx(column(nystrom, "tokens"), rel=1e-5), "same batches"
        assert exact["parameters"] == nystrom["parameters"]
        assert list(column(exact, "step")) == list(column(nystrom, "step"))
    assert (tmp_path / "folder/scaling_smoke/scaling.png").stat().st_size > 10_000
    capsys.readouterr()
    assert main([*words, "again=true"]) == 0
    assert "validation at step" not in capsys.readouterr().out  # the runs are only read
