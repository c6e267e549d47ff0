"""The plan of a run: rates by the formulas of others, lengths in tokens, borders that lose no example."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

from nystromformer.data.order import GlobalBatches
from nystromformer.errors import UserError
from nystromformer.settings import PretrainSettings, TrainingSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.training import PhaseSettings
from nystromformer.training.phases import Drawing, Plan, plan_of


def settings(**changes) -> TrainingSettings:
    usual = {"steps": 100, "warmup_steps": 10, "learning_rate": 0.01, "global_batch_size": 8}
    return TrainingSettings(**{**usual, **changes})


def phases(*written: dict, **changes) -> TrainingSettings:
    return settings(phases=[PhaseSettings(**each) for each in written], **changes)


def rates(plan: Plan) -> list[float]:
    return [plan.rate(step) for step in range(plan.steps)]


def of_transformers(schedule, *words, **more) -> list[float]:
    """Its rate of each of 100 steps; transformers' first step of a warm-up has the rate 0, ours 1/n."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = schedule(optimizer, *words, **more)
    found = []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_transformers():
    expected = of_transformers(get_cosine_schedule_with_warmup, 10, 100)
    assert rates(plan_of(settings(decay="cosine")))[10:] == pytest.approx(expected[10:])


@pytest.mark.parametrize(("decay", "theirs"), [("sqrt", "1-sqrt"), ("linear",) * 2, ("cosine",) * 2])
@pytest.mark.parametrize("least", [0.0, 0.1])
def test_warm_up_stable_decay_is_transformers(decay, theirs, least):
    words = {"num_warmup_steps": 10, "num_decay_steps": 20, "num_training_steps": 100}
    expected = of_transformers(get_wsd_schedule, **words, decay_type=theirs, min_lr_ratio=least)
    found = rates(plan_of(settings(decay=decay, decay_steps=20, decay_to=least)))
    assert found[10:] == pytest.approx(expected[10:])
    assert found[:10] == pytest.approx([0.001 * (step + 1) for step in range(10)])


def test_phases_that_say_nothing_of_a_rate_share_one_schedule():
    whole = plan_of(settings())
    parted = plan_of(phases({"steps": 90, "max_length": 16}, {"steps": 10, "max_length": 64}))
    assert rates(parted) == rates(whole)
    assert [stretch.drawing.max_length for stretch in parted.stretches] == [16, 64]


def test_a_phase_that_writes_of_its_rate_begins_a_schedule_without_warm_up():
    plan = plan_of(
        phases({"steps": 50, "decay": "none"}, {"steps": 30, "learning_rate": 0.002, "decay": "none"},
               {"steps": 20, "learning_rate": 0.002, "decay": "linear"})
    )  # fmt: skip
    found = rates(plan)
    assert found[9:50] == [0.01] * 41
    assert found[50:81] == [0.002] * 31
    assert found[80:] == pytest.approx([0.002 * (20 - step) / 20 for step in range(20)])


def test_a_stable_run_and_decays_from_it_are_runs_that_were_planned_so():
    stable = plan_of(settings(decay="none"))
    for decay in ("sqrt", "linear"):
        planned = rates(plan_of(settings(steps=80, decay=decay, decay_steps=20)))
        assert planned[:60] == rates(stable)[:60]
        assert planned == rates(
            plan_of(phases({"steps": 60, "decay": "none"}, {"steps": 20, "decay": decay}))
        )


def tokens_of(drawing: Drawing) -> float:
    return drawing.max_length / 2


def test_lengths_in_tokens_are_steps_of_real_tokens():
    plan = plan_of(
        settings(tokens=50_000, warmup_tokens=5_000, decay="sqrt", decay_tokens=10_000),
        max_length=100,
        row_tokens=tokens_of,  # 400 tokens a step
    )
    assert (plan.steps, plan.schedules[0].warmup_steps, plan.schedules[0].decay_steps) == (125, 13, 25)


def test_a_growing_batch_takes_the_tokens_it_is_given():
    training = settings(
        tokens=200_000, global_batch_size=64, batch_warmup_from=16, batch_warmup_tokens=60_000, warmup_steps=0
    )
    plan = plan_of(training, max_length=100, row_tokens=tokens_of)
    assert [stretch.batch_size for stretch in plan.stretches] == [16, 32, 48, 64]
    tokens = [stretch.steps * stretch.batch_size * 50 for stretch in plan.stretches]
    assert tokens[:3] == pytest.approx([20_000] * 3, rel=0.05)
    assert sum(tokens) == pytest.approx(200_000, rel=0.02)
    assert plan.batch_sizes == "16 to 64"


def test_what_says_nothing_is_the_run_s_and_growth_the_first_phase_s():
    training = phases(
        {"tokens": 40_000, "masking_probability": 0.4}, {"steps": 5, "global_batch_size": 32}, {"steps": 5},
        batch_warmup_from=4, batch_warmup_tokens=10_000, decay="none",
    )  # fmt: skip
    plan = plan_of(training, max_length=10, masking_probability=0.2, row_tokens=tokens_of)
    assert [stretch.batch_size for stretch in plan.stretches] == [4, 8, 32, 8]
    assert [stretch.drawing.masking_probability for stretch in plan.stretches] == [0.4, 0.4, 0.2, 0.2]


def drawn(plan: Plan, examples: int, groups: int) -> list[list]:
    """The keys of each step, as a run draws them."""
    found = []
    for stretch in plan.stretches:
        order = GlobalBatches(
            examples, global_batch_size=stretch.batch_size, micro_batch_size=1, seed=0,
            num_steps=stretch.steps,
            lengths=(lambda indices: indices % 7 + 3) if groups else None, length_groups=groups,
            first_step=stretch.first_step, first_row=stretch.first_row,
            last_step=None if stretch.last_step == plan.steps else stretch.last_step,
        )  # fmt: skip
        found += [order.global_keys(step) for step in range(stretch.first_step, stretch.last_step)]
    return found


@pytest.mark.parametrize("groups", [0, 4])
def test_no_example_is_lost_or_shown_twice_where_the_batch_changes(groups):
    plan = plan_of(
        phases({"steps": 23}, {"steps": 17, "global_batch_size": 12}, {"steps": 9, "max_length": 8},
               {"steps": 10, "global_batch_size": 4}, warmup_steps=0)
    )  # fmt: skip
    rows = 23 * 8 + 17 * 12 + 9 * 8 + 10 * 4
    keys = [key for step in drawn(plan, rows, groups) for key in step]
    ends = 16 * 4 if groups else 0  # the last window is never filled
    assert len(set(keys)) == len(keys) == rows
    assert len({index for epoch, index in keys if epoch == 0}) >= rows - ends


def test_a_change_of_the_rate_alone_changes_no_batch():
    whole = drawn(plan_of(settings(warmup_steps=0)), 500, 4)
    parted = plan_of(phases({"steps": 37, "decay": "none"}, {"steps": 63, "decay": "sqrt"}, warmup_steps=0))
    assert len(parted.stretches) == 1
    assert drawn(parted, 500, 4) == whole


def test_time_is_expected_by_tokens():
    plan = plan_of(
        phases({"steps": 50, "max_length": 10}, {"steps": 50, "max_length": 40}, warmup_steps=0),
        max_length=40,
    )
    assert plan.time_left(50, 10, 3.0) == pytest.approx(5 * 3.0 * 4)
    assert plan.reached_by(plan.work(73)) == pytest.approx(73)
    assert plan.work(100) == 8 * 50 * (10 + 40)
    # Half of the time over at the border, where a fifth of the work is done: behind.
    assert plan.rate(50, time_spent=0.5) == pytest.approx(0.01 * 0.5)
    assert plan.rate(50, time_spent=0.2) == plan.rate(50)


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (settings(warmup_steps=60, decay_steps=50), "60 steps of warm-up and 50 of decay do not fit"),
        (settings(warmup_tokens=1e9), "of warm-up and 0 of decay do not fit into the schedule's 100"),
        (settings(batch_warmup_from=4, batch_warmup_tokens=1e6), "training.batch_warmup_tokens=1e+06 are"),
        (phases({"steps": 5, "warmup_steps": 6}), "training.phases[0].warmup_steps=6"),
    ],
)
def test_what_does_not_fit_is_named(training, told):
    with pytest.raises(UserError) as error:
        plan_of(training, max_length=100, row_tokens=tokens_of)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (phases({}), "training.phases[0].steps and training.phases[0].tokens: write one of them"),
        (phases({"steps": 5, "tokens": 9.0}), "write one of them"),
        (phases({"steps": 5, "warmup_steps": 1, "warmup_tokens": 9.0}), "phases[0].warmup_steps and"),
        (phases({"steps": 5}, {"steps": 0}), "training.phases[1].steps=0 is impossible"),
        (phases({"steps": 5, "decay": "sqr"}), "training.phases[0].decay='sqr' is unknown: write one"),
        (phases({"steps": 5, "weights": [0.0, 0.0]}), "training.phases[0].weights"),
        (phases({"steps": 5, "weights": [-1.0, 2.0]}), "training.phases[0].weights holds -1.0"),
        (settings(batch_warmup_from=3, batch_warmup_tokens=9.0), "training.batch_warmup_from=3 does not"),
        (settings(batch_warmup_from=4), "training.batch_warmup_tokens go together"),
        (
            phases({"steps": 5, "batch_warmup_from": 3, "batch_warmup_tokens": 9.0}),
            "training.phases[0].batch_warmup_from=3 does not divide training.global_batch_size=8",
        ),
        (settings(tokens=1e6, warmup_steps=-1), "training.warmup_steps=-1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(training, told):
    (line,) = training.complaints()
    assert told in line


def test_every_size_of_batch_is_divided_by_the_processes():
    training = phases({"steps": 5}, {"steps": 5, "global_batch_size": 9}, batch_warmup_from=2)
    assert [line.partition(" ")[0] for line in training.complaints_on(4)] == [
        "training.batch_warmup_from=2",
        "training.phases[1].global_batch_size=9",
    ]
    (line,) = replace(training, batch_warmup_from=None, micro_batch_size=8).complaints_on(1)
    assert "training.phases[1].global_batch_size=9" in line


def test_the_modern_experiment_is_ten_billion_tokens_that_end_in_a_decay():
    settings = compose("pretrain", ["experiment=modern_512"])
    assert isinstance(settings, PretrainSettings)
    assert not list(settings.complaints())
    assert (settings.data.sentence_order, settings.data.masking_probability) == (False, 0.3)
    plan = plan_of(settings.training, max_length=512, masking_probability=0.3, row_tokens=tokens_of)
    tokens = [
        stretch.steps * stretch.batch_size * stretch.drawing.max_length / 2 for stretch in plan.stretches
    ]
    assert sum(tokens) == pytest.approx(1e10, rel=1e-3)
    assert [stretch.batch_size for stretch in plan.stretches] == [*range(256, 2049, 256), 512]
    decay = plan.schedules[-1]
    assert (decay.decay, decay.warmup_steps) == ("sqrt", 0)
    assert plan.rate(decay.first_step) == plan.rate(decay.first_step - 1) == 7e-4
    assert plan.rate(plan.steps - 1) < 1e-6


def test_shapes_go_from_one_to_zero():
    for decay in ("linear", "cosine", "sqrt"):
        found = rates(plan_of(settings(decay=decay)))
        assert found[9] == 0.01
        assert math.isclose(plan_of(settings(decay=decay)).rate(100), 0, abs_tol=1e-9)
        assert found[10:] == sorted(found[10:], reverse=True)
