"""Fine-tuning from a trained BERT: Nyström attention beside exact attention, and what to do with short rows.

Every seed is a run of `nystromformer finetune` that goes on where it was stopped; both sides of a comparison
have the same recipe, seeds and batches.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nystromformer.pictures import STYLES, legend_below, picture
from nystromformer.reproduce.result import trained_bert
from nystromformer.reproduce.runs import Seeds, finetuned, finished_run
from nystromformer.reproduce.tasks import (
    absent_lines,
    cells_of_examples,
    cells_of_recipe,
    examples_of,
    figures_of_seeds,
    on_every_task,
    recipe_of,
    seconds_of_seeds,
)
from nystromformer.results import Result
from nystromformer.settings.model import SHORT_ROWS
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import percent, table
from nystromformer.training.run_folder import RunFolder

ATTENTIONS = {"Nyström": "nystrom", "exact": "softmax"}
_TOLD = {
    "exact": "exact attention and the convolution",
    "exact_without_convolution": "exact attention alone",
    "landmark_per_token": "the approximation, one landmark a token",
    "segments": "landmarks of as many tokens as at full length",
}


def finetune(settings: ReproduceSettings) -> Result:
    """The trained BERT as it is and as a Nyströmformer, on every task of the scale."""

    def measure(task: str, words: list[str]) -> dict[str, Any]:
        sides = {
            side: finetuned(
                settings,
                [*words, f"model.attention={attention}"],
                trained_bert(settings),
                name=f"finetune_{attention}",
            )
            for side, attention in ATTENTIONS.items()
        }
        first = sides["Nyström"]
        return {
            **{side: _told(seeds) for side, seeds in sides.items()},
            "title": first[0]["title"],
            "gap": _median(sides["exact"]) - _median(first),
            "recipe": recipe_of(first, "steps"),
            "examples": examples_of(first),
            "cut": first[0]["data"]["train"]["truncated"],
            "tokens": first[0]["model"]["max_length"],
        }

    measured, absent = on_every_task(settings, settings.scale.finetune, measure)
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
                "task", "training", "held out", "tokens", "cut", "rate", "batch", "epochs",
                "minutes, Nyström", "exact",
            ),
            [
                (
                    found["title"], *cells_of_examples(found["examples"]), found["tokens"],
                    f"{found['cut']:.1%}", *cells_of_recipe(found["recipe"]),
                    *(f"{found[side]['seconds'] / 60:.1f}" for side in ATTENTIONS),
                )
                for found in measured.values()
            ],
        ),
        "",
        *absent_lines(absent),
        "Rows of at most 64 tokens, the number of landmarks, get exact attention in both, so that on GLUE's "
        "short sentences Nyström attention differs by its convolution; IMDB's reviews are what landmarks "
        "work on. "
        f"{_origin(measured)}",
    ]  # fmt: skip
    return Result(
        title="Fine-tuned from a trained BERT, Nyström beside exact attention",
        measured={"tasks": measured, "absent": absent},
        lines=lines,
        headline=f"Exact attention above Nyström attention, points: {gaps}",
        plots={"finetune": _draw},
    )


def short_rows(settings: ReproduceSettings) -> Result:
    """Each way to compute rows of at most m tokens, from BERT and from a model pretrained at full length."""
    scale = settings.scale.short_rows
    pretrained = finished_run(settings, settings.scale.warmstart.nystrom)
    starts = {"BERT": trained_bert(settings), "pretrained": str(RunFolder(pretrained).model)}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    sizes: dict[str, int] = {}
    count_of_seeds = 0
    for words in scale.tasks:
        for start, checkpoint in starts.items():
            for choice in SHORT_ROWS:
                more = [f"model.short_rows={choice}", "model.attention=nystrom"]
                name = f"short_rows_{start.lower()}_{choice}"
                seeds = finetuned(settings, [*scale.every, *words.split(), *more], checkpoint, name=name)
                examples = examples_of(seeds)
                sizes[seeds[0]["title"]] = sum(examples.values()) - examples["train"]
                count_of_seeds = len(seeds)
                found.setdefault(seeds[0]["title"], {}).setdefault(choice, {})[start] = _told(seeds)
    best = {start: _best(found, start) for start in starts}
    lines = [
        "Rows of at most 64 tokens, the number of landmarks, computed in four ways while fine-tuning and "
        "after: from the trained BERT of the samples, its new convolution starting at zero, and from the "
        "Nyströmformer that the warm start made of it at 512 tokens, where a landmark is the mean of 8 and "
        "the convolution is trained. Score in per cent, median of the seeds (mean ± standard deviation):",
        "",
        *table(
            ("task", "short rows get", *(f"from {start}" for start in starts)),
            [
                (
                    title,
                    f"`{choice}`: {_TOLD[choice]}",
                    *(percent(_values(sides[start], "score")) for start in starts),
                )
                for title, choices in found.items()
                for choice, sides in choices.items()
            ],
        ),
        "",
        "Highest mean of the medians: "
        + "; ".join(
            f"from {start}: `{choice}` ({100 * score:.1f})" for start, (choice, score) in best.items()
        )
        + ". The default is `exact`. One standard error of an accuracy of 80 per cent is "
        + ", ".join(f"{40 / count**0.5:.1f} points on {title}" for title, count in sizes.items())
        + f" for each of the {count_of_seeds} seed(s).",
    ]
    return Result(
        title="What short rows should get",
        measured={"tasks": found, "best": best},
        lines=lines,
        headline="; ".join(f"from {start}: {choice}" for start, (choice, _) in best.items()),
    )


def _best(found: Mapping[str, Mapping[str, Mapping[str, Any]]], start: str) -> tuple[str, float]:
    """The choice with the highest mean over the tasks of its median score."""
    means = {
        choice: statistics.fmean(_middle(choices[choice][start], "score") for choices in found.values())
        for choice in SHORT_ROWS
    }
    return max(means.items(), key=lambda item: item[1])


def _told(seeds: Seeds) -> dict[str, Any]:
    """The figures of the seeds as the page and JSON hold them."""
    return {
        "seeds": [result["seed"] for result in seeds],
        "figures": figures_of_seeds(seeds),
        "score": [result["dev"]["score"] for result in seeds],
        "seconds": seconds_of_seeds(seeds),
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


def _values(told: Mapping[str, Any], name: str) -> list[float]:
    return told["score"] if name == "score" else told["figures"][name]


def _middle(told: Mapping[str, Any], name: str) -> float:
    return statistics.median(_values(told, name))


def _median(seeds: Seeds) -> float:
    return statistics.median(result["dev"]["score"] for result in seeds)


def _draw(measured: dict[str, Any], path: Path) -> None:
    """Each task's score, every seed a point, Nyström beside exact."""
    tasks = measured["tasks"].values()
    with picture(path, height=2.6) as (figure, axis):
        for number, (side, shift) in enumerate(zip(ATTENTIONS, (-0.12, 0.12), strict=True)):
            style = {**STYLES[number], "linestyle": "none"}
            for place, task in enumerate(tasks):
                scores = [100 * score for score in task[side]["score"]]
                axis.plot([place + shift] * len(scores), scores, **style, label=None if place else side)
                middle = statistics.median(scores)
                axis.hlines(middle, place + shift - 0.1, place + shift + 0.1, color=style["color"])
        axis.set_xticks(range(len(tasks)), [task["title"] for task in tasks])
        axis.set(ylabel="held-out score, per cent", xlim=(-0.5, len(tasks) - 0.5))
        legend_below(figure, axis, columns=2)
