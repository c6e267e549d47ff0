"""Figure 5 of the supplement: masked-token and sentence-order accuracy at a length and at twice the length.

A model is trained at the length, grown to twice its positions and trained on. Both read the same held-out
documents, each in chunks of its own length; a count of chunks is halved where they are twice as long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nystromformer.pictures import STYLES, figure, save
from nystromformer.reproduce.result import Result
from nystromformer.reproduce.runs import at_chance, finished_run, validations
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import table

PUBLISHED = "the paper reports the same MLM accuracy at both lengths, and SOP accuracy about 2 points higher"


def longer(settings: ReproduceSettings) -> Result:
    """Train both lengths, or read the finished runs: table and curves."""
    first = finished_run(settings, settings.scale.longer.first)
    source = f"{first.runs_folder}/{first.name}/model"
    second = finished_run(settings, [*settings.scale.longer.second, f"init.path={source}"])
    curves = {str(run.model.max_length): validations(run) for run in (first, second)}
    last = {length: events[-1] for length, events in curves.items()}
    short, long = last.values()
    gain = {name: long[name] - short[name] for name in ("mlm_accuracy", "sop_accuracy")}
    lines = [
        f"`{second.name}` starts from `{first.name}`, its position table grown from {first.model.max_length} "
        f"to {second.model.max_length} by {second.init.positions}, and trains "
        f"{second.training.steps:,} steps. Documents of the same held-out split, in chunks of each length:",
        "",
        *table(
            ("length", "MLM accuracy", "SOP accuracy", "MLM loss, nats", "predicted tokens", "rows"),
            [
                (
                    length, f"{event['mlm_accuracy']:.3f}", f"{event['sop_accuracy']:.3f}",
                    f"{event['mlm_loss']:.3f}", f"{event['tokens']:,}", f"{event['rows']:,}",
                )
                for length, event in last.items()
            ],
        ),
        "",
        f"Measured: MLM accuracy {gain['mlm_accuracy']:+.3f}, SOP accuracy {gain['sop_accuracy']:+.3f}; "
        f"{PUBLISHED} (supplement, figure 5).",
        *at_chance([event["sop_accuracy"] for event in last.values()], rows=short["rows"]),
    ]  # fmt: skip
    return Result(
        title="Longer documents: before and after the extension",
        measured={"validations": curves, "gain": gain},
        lines=lines,
        headline=f"From {first.model.max_length} to {second.model.max_length} tokens: MLM accuracy "
        f"{gain['mlm_accuracy']:+.3f}, SOP accuracy {gain['sop_accuracy']:+.3f}",
        plots={"longer": _draw},
    )


def _draw(result: dict[str, Any], path: Path) -> None:
    with figure(1, 2, width="page", height=2.3) as (fig, axes):
        for axis, key, title in zip(axes, ("mlm_accuracy", "sop_accuracy"), ("MLM", "SOP"), strict=True):
            before = 0
            for (length, events), style in zip(result["validations"].items(), STYLES, strict=False):
                steps = [before + event["step"] for event in events]
                axis.plot(steps, [event[key] for event in events], **style, label=f"{length} tokens")
                before = steps[-1]  # the longer run goes on where the shorter one ended
            axis.set(title=f"{title}, held-out documents", xlabel="step", ylabel="accuracy")
            axis.legend()
        save(fig, path)
