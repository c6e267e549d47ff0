"""Figure 5 of the supplement: masked-token and sentence-order accuracy at a length and at twice the length.

A model is trained at the length, grown to twice its positions and trained on. Both read the same held-out
documents, each in chunks of its own length; a count of chunks is halved where they are twice as long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nystromformer.benchmark.results import table
from nystromformer.reproduce.result import finished_run, validations, write_result
from nystromformer.settings.reproduce import ReproduceSettings

_TINY = ["debug=smoke", "experiment=demo", "data=imdb", "model.max_length=64", "name=longer_64"]
_SAMPLE = [
    "experiment=warmstart",
    "training.steps=600",
    "training.global_batch_size=8",
    "training.validation_examples=610",
    "name=longer_512",
]
_RUNS = {
    "paper": (["experiment=base_512"], ["experiment=base_1024", "training.validation_examples=1_024"]),
    "sample": (
        _SAMPLE,
        [
            *_SAMPLE[:1], "init=checkpoint", "model.max_length=1024", "training.steps=200",
            "training.global_batch_size=4", "training.learning_rate=1e-4", "training.warmup_steps=0",
            "training.validation_examples=610", "name=longer_1024",
        ],
    ),
    "smoke": (
        _TINY,
        [*_TINY[:3], "init=checkpoint", "model.max_length=128", "training.warmup_steps=0", "name=longer_128"],
    ),
}  # fmt: skip
PUBLISHED = "the paper reports the same MLM accuracy at both lengths, and SOP accuracy about 2 points higher"


def longer(settings: ReproduceSettings) -> None:
    """Train both lengths, or read the finished runs, and write table and curves."""
    first_words, second_words = _RUNS[settings.scale]
    first = finished_run(settings, first_words)
    source = f"{first.runs_folder}/{first.name}/model"
    second = finished_run(settings, [*second_words, f"init.path={source}"])
    curves = {str(run.model.max_length): validations(run) for run in (first, second)}
    last = {length: events[-1] for length, events in curves.items()}
    short, long = last.values()
    gain = {name: long[name] - short[name] for name in ("mlm_accuracy", "sop_accuracy")}
    lines = [
        "# Longer documents: before and after the extension",
        "",
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
    ]  # fmt: skip
    write_result(settings, {"validations": curves, "gain": gain}, lines, _draw)


def _draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, title in zip(axes, ("mlm_accuracy", "sop_accuracy"), ("MLM", "SOP"), strict=True):
        before = 0
        for length, events in result["validations"].items():
            axis.plot(
                [before + e["step"] for e in events], [e[key] for e in events], marker="o", label=length
            )
            before += events[-1]["step"]  # the longer run goes on where the shorter one ended
        axis.set(title=f"{title} accuracy, held-out", xlabel="step")
        axis.legend(title="length")
    figure.savefig(path, dpi=120)
    plt.close(figure)
