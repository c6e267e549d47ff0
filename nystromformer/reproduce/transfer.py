"""Fine-tuning from a trained BERT: Nyström attention beside exact attention.

Every seed is a run of `nystromformer finetune` that goes on where it was stopped; both sides of a comparison
have the same recipe, seeds and batches.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.markdown import table
from nystromformer.reproduce.plotting import STYLES, figure, save
from nystromformer.reproduce.result import Result, trained_bert
from nystromformer.reproduce.runs import Seeds, finetuned, percent, task_of, why_absent
from nystromformer.settings.reproduce import ReproduceSettings

ATTENTIONS = {"Nyström": "nystrom", "exact": "softmax"}


def finetune(settings: ReproduceSettings) -> Result:
    """The trained BERT as it is and as a Nyströmformer, on every task of the scale."""
    scale = settings.scale.finetune
    measured: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for words in scale.tasks:
        task = task_of(words.split())
        if reason := why_absent(settings, [*scale.every, *words.split()]):
            absent[task] = reason
            print(f"{task} is absent: {reason}", flush=True)
            continue
        sides = {
            side: finetuned(
                settings,
                [*scale.every, *words.split(), f"model.attention={attention}"],
                trained_bert(settings),
                name=f"finetune_{attention}",
            )
            for side, attention in ATTENTIONS.items()
        }
        measured[task] = {side: _told(seeds) for side, seeds in sides.items()}
        first = sides["Nyström"][0]
        measured[task] |= {
            "title": first["title"],
            "gap": _median(sides["exact"]) - _median(sides["Nyström"]),
            "recipe": {name: first[name] for name in ("learning_rate", "batch_size", "epochs", "steps")},
            "examples": {part: facts["examples"] for part, facts in _sets(first).items()},
            "cut": first["data"]["train"]["truncated"],
            "tokens": first["model"]["max_length"],
        }
    if not measured:
        raise UserError("\n".join(f"{task}: {reason}" for task, reason in absent.items()))
    gaps = ", ".join(f"{found['title']} {100 * found['gap']:+.1f}" for found in measured.values())
    lines = [
        "The trained BERT of the samples (or `checkpoint=`), fine-tuned as it is and as a Nyströmformer, "
        "with the same recipe, seeds and batches. Held-out figures in per cent, the median of the seeds "
        "(mean ± standard deviation); a seed's checkpoint is chosen by the same held-out examples.",
        "",
        *table(
            ("task and figure", "Nyström", "exact", "exact − Nyström", "seeds"),
            [
                (
                    f"{found['title']} {name.replace('_', ' ')}",
                    *(percent(_values(found[side], name)) for side in ATTENTIONS),
                    f"{100 * (_middle(found['exact'], name) - _middle(found['Nyström'], name)):+.1f}",
                    len(found["exact"]["seeds"]),
                )
                for found in measured.values()
                for name in found["exact"]["figures"]
            ],
        ),
        "",
        *table(
            (
                "task",
                "training",
                "held out",
                "tokens",
                "cut",
                "rate",
                "batch",
                "epochs",
                "minutes, Nyström",
                "exact",
            ),
            [
                (
                    found["title"],
                    f"{found['examples']['train']:,}",
                    " + ".join(f"{n:,}" for part, n in found["examples"].items() if part != "train"),
                    found["tokens"],
                    f"{found['cut']:.1%}",
                    f"{found['recipe']['learning_rate']:g}",
                    found["recipe"]["batch_size"],
                    f"{found['recipe']['epochs']:g}",
                    *(f"{found[side]['seconds'] / 60:.1f}" for side in ATTENTIONS),
                )
                for found in measured.values()
            ],
        ),
        "",
        *(f"- {task}: absent, {reason}" for task, reason in absent.items()),
        *([""] if absent else []),
        "Rows of at most 64 tokens, the number of landmarks, get exact attention in both, so that on GLUE's "
        "short sentences Nyström attention differs by its convolution; IMDB's reviews are what landmarks "
        "work on. "
        f"{_origin(measured)}",
    ]
    return Result(
        title="Fine-tuned from a trained BERT, Nyström beside exact attention",
        measured={"tasks": measured, "absent": absent},
        lines=lines,
        headline=f"Exact attention above Nyström attention, points: {gaps}",
        plots={"finetune": _draw},
    )


def _told(seeds: Seeds) -> dict[str, Any]:
    """The figures of the seeds as the page and JSON hold them."""
    names = [name for name in seeds[0]["dev"] if name not in ("loss", "score")]
    return {
        "seeds": [result["seed"] for result in seeds],
        "figures": {name: [result["dev"][name] for result in seeds] for name in names},
        "score": [result["dev"]["score"] for result in seeds],
        "seconds": sum(result["seconds"] for result in seeds),
        "commit": seeds[0]["machine"]["commit"],
        "threads": seeds[0]["machine"].get("threads"),
    }


def _origin(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """When the page is made of seeds that were finished before: what they were trained by."""
    told = [found[side] for found in measured.values() for side in ATTENTIONS]
    commits = sorted({one["commit"] for one in told})
    threads = sorted({str(one["threads"]) for one in told})
    minutes = sum(one["seconds"] for one in told) / 60
    return (
        f"All seeds together trained for {minutes:.0f} minutes, threads {' or '.join(threads)}, commit "
        f"{', '.join(commits)}."
    )


def _sets(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: part for name, part in result["data"].items() if isinstance(part, dict)}


def _values(told: Mapping[str, Any], name: str) -> list[float]:
    return told["score"] if name == "score" else told["figures"][name]


def _middle(told: Mapping[str, Any], name: str) -> float:
    return statistics.median(_values(told, name))


def _median(seeds: Seeds) -> float:
    return statistics.median(result["dev"]["score"] for result in seeds)


def _draw(measured: dict[str, Any], path: Path) -> None:
    """Each task's score, every seed a point, Nyström beside exact."""
    with figure(width="column", height=2.6) as (fig, axis):
        for number, (side, shift) in enumerate(zip(ATTENTIONS, (-0.12, 0.12), strict=True)):
            style = {**STYLES[number], "linestyle": "none"}
            for place, task in enumerate(measured["tasks"].values()):
                scores = [100 * score for score in task[side]["score"]]
                axis.plot([place + shift] * len(scores), scores, **style, label=side if place == 0 else None)
                axis.hlines(
                    statistics.median(scores), place + shift - 0.1, place + shift + 0.1, color=style["color"]
                )
        axis.set_xticks(range(len(measured["tasks"])), [task["title"] for task in measured["tasks"].values()])
        axis.set(ylabel="held-out score, per cent", xlim=(-0.5, len(measured["tasks"]) - 0.5))
        fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        save(fig, path)
