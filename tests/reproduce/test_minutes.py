"""`minutes=`: the runs behind a result become longer in proportion, on the same batches."""

import pytest

from nystromformer.cli import main
from nystromformer.reproduce.pretraining import check_same_batches
from nystromformer.reproduce.result import command_of, configuration_of
from nystromformer.reproduce.runs import composed_run, lengthened, with_start
from nystromformer.settings.compose import compose

LISTS = {"small": ("bert", "nystromformer"), "longer": ("first", "second"), "scaling": ("every",)}


@pytest.mark.parametrize("name", LISTS)
def test_steps_warmup_and_validations_grow_alike(name):
    usual = compose("reproduce", [f"figure={name}", "scale=cpu"])
    minutes = 3 * getattr(usual.scale, name).usual_minutes
    longer = compose("reproduce", [f"figure={name}", "scale=cpu", f"minutes={minutes}"])
    for which in LISTS[name]:
        one, three = (
            composed_run(each, with_start(getattr(getattr(each.scale, name), which)))
            for each in (usual, lengthened(longer, name))
        )
        for setting in ("steps", "warmup_steps", "validate_every"):
            assert getattr(three.training, setting) == 3 * getattr(one.training, setting)
        assert three.name != one.name, "a run folder of its own"
        assert (three.model, three.data, three.training.global_batch_size) == (
            one.model, one.data, one.training.global_batch_size,
        )  # fmt: skip
    assert lengthened(usual, name) is usual
    assert configuration_of(lengthened(longer, name), name, "cpu") != configuration_of(usual, name, "cpu")
    assert command_of(longer, name) == f"nystromformer reproduce figure={name} scale=cpu minutes={minutes:g}"


def test_both_small_models_still_see_the_same_batches():
    settings = lengthened(compose("reproduce", ["figure=small", "scale=cpu", "minutes=7"]), "small")
    check_same_batches(
        *(composed_run(settings, getattr(settings.scale.small, one)) for one in LISTS["small"])
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["table=lra", "scale=cpu", "minutes=3"], "minutes is of figure=small and figure=longer"),
        (["figure=small", "scale=paper", "minutes=3"], "how long scale=paper takes is not known"),
        (["figure=small", "scale=cpu", "minutes=0"], "minutes=0.0 is impossible"),
        (["figure=small", "scale=cpu", "pretrain=true"], "pretrain=true is of table=lra"),
    ],
)
def test_where_it_says_nothing_it_is_refused(words, told, capsys):
    assert main(["reproduce", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
