"""The end of a run: the exported model, what it reached, and what it fills into sentences."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase, pipeline
from transformers.utils import logging as transformers_logging

from nystromformer.attention.nystrom import near_in_words
from nystromformer.data.storage import PreparedData
from nystromformer.files import write_atomically
from nystromformer.model import NystromformerForMaskedLM, NystromformerForPreTraining
from nystromformer.settings import PretrainSettings
from nystromformer.training.curves import CHANCE_LOSS
from nystromformer.training.display import duration
from nystromformer.training.metrics import Event, MetricsLog
from nystromformer.training.page import report_page
from nystromformer.training.phases import Plan
from nystromformer.training.run_folder import RunFolder

FILLED_SENTENCES = 3


def finish_run(
    settings: PretrainSettings,
    folder: RunFolder,
    model: NystromformerForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    prepared: PreparedData,
    metrics: MetricsLog,
    plan: Plan,
) -> None:
    """Export model, tokenizer and card, write the reports, and print the summary."""
    transformers_logging.disable_progress_bar()
    last = metrics.events("validation")[-1]
    export(model, tokenizer, folder.model, model_card(settings, last, prepared, plan))
    filled = fill_masks(folder.model, held_out_sentences(prepared, tokenizer), tokenizer)
    summary = {
        "steps": last["step"],
        "seconds": last["seconds"],
        "final": last,
        "baselines": {
            "unigram_loss": last["unigram_loss"],
            **({"chance_sop_loss": CHANCE_LOSS} if "sop_loss" in last else {}),
        },
        "filled": filled,
    }
    write_atomically(folder.report, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder.page, report_page(settings, folder, metrics, filled, plan))
    _print_summary(settings, folder, last, filled)


def export(
    model: NystromformerForPreTraining, tokenizer: PreTrainedTokenizerBase, path: Path, card: str
) -> None:
    """Write a folder in transformers' layout; an earlier one is replaced."""
    model.save_pretrained(path)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(path)
    write_atomically(path / "README.md", card)


def model_card(settings: PretrainSettings, last: Event, prepared: PreparedData, plan: Plan) -> str:
    model, training = settings.model, settings.training
    near = near_in_words(model.neighbours, model.salient_tokens)
    mechanism = (
        f"Nyström attention with {model.num_landmarks} landmarks{near}"
        if model.attention == "nystrom"
        else "exact softmax attention"
    )
    goals, of_order = "masked language modelling", ""
    if "sop_loss" in last:
        goals += " and sentence-order prediction"
        of_order = f"""
| sentence order, loss (nats) | {last["sop_loss"]:.3f} | {CHANCE_LOSS:.3f} (chance) |
| sentence order, accuracy | {last["sop_accuracy"]:.3f} | 0.500 (chance) |"""
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [nystromformer]
---

# {settings.name}

A BERT-style encoder of {model.num_hidden_layers} layers of {model.hidden_size} with {mechanism}, for
up to {model.max_length} tokens, pretrained by [nystromformer](https://pypi.org/project/nystromformer/)
on the corpus `{settings.data.corpus}` with {goals}.

```python
import nystromformer.model  # makes transformers' Auto classes run Nyström attention
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH OF THIS FOLDER")
```

Without that import transformers opens the folder with its own class, which computes exact attention
plus the convolution and lets padding leak.

| held-out documents | this model | baseline |
|---|---|---|
| masked tokens, loss (nats) | {last["mlm_loss"]:.3f} | {last["unigram_loss"]:.3f} (unigram) |
| masked tokens, accuracy | {last["mlm_accuracy"]:.3f} | |{of_order}

Started {_start(settings)}; {last["step"]:,} steps of {plan.batch_sizes} examples, AdamW at
{plan.rates}, seed {training.seed}. Data: `{prepared.folder.name}`.
"""


def held_out_sentences(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Sentences of the validation split with one word masked, and that word.

    The first sentences of 8 to 24 tokens that hold a word of at least four letters which is one
    token; of those words the middle one is masked.
    """
    split = prepared.split("validation")
    found: list[tuple[str, str]] = []
    for index in range(len(split)):
        ids, lengths = split[index]
        sentences = np.split(np.asarray(ids), np.cumsum(lengths)[:-1])
        for sentence in sentences:
            masked = _mask_middle_word([int(token) for token in sentence], tokenizer)
            if masked is not None:
                found.append(masked)
                break  # one a chunk, so that they come from different places
        if len(found) == FILLED_SENTENCES:
            break
    return found


def _mask_middle_word(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    if not 8 <= len(ids) <= 24:
        return None
    text = tokenizer.decode(ids)
    encoded = tokenizer(text, add_special_tokens=False)
    tokens_of_word = Counter(encoded.word_ids())
    spans = [encoded.token_to_chars(place) for place in range(len(encoded["input_ids"]))]
    words = [
        (span.start, span.end)
        for word, span in zip(encoded.word_ids(), spans, strict=True)
        if tokens_of_word[word] == 1 and text[span.start : span.end].isalpha() and span.end - span.start >= 4
    ]
    if not words:
        return None
    start, end = words[len(words) // 2]
    return f"{text[:start]}{tokenizer.mask_token}{text[end:]}", text[start:end]


def fill_masks(
    model: Path, sentences: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The three likeliest words for each masked sentence, by transformers' own pipeline.

    The exported folder is opened again for this, so that what is shown is what a user will load.
    """
    fill = pipeline(
        "fill-mask", model=NystromformerForMaskedLM.from_pretrained(model), tokenizer=tokenizer, top_k=3
    )
    filled = []
    for sentence, word in sentences:
        guesses = [{"word": g["token_str"].strip(), "probability": g["score"]} for g in fill(sentence)]
        filled.append({"sentence": sentence, "word": word, "guesses": guesses})
    return filled


def _start(settings: PretrainSettings) -> str:
    """Where the weights came from, and by which run, if the source lies in the folder of one."""
    init = settings.init
    if init.source == "scratch":
        return "from random weights"
    words = f"from {init.source} `{init.path}`"
    report = Path(str(init.path)).parent / "report.json"
    if init.source == "checkpoint" and report.is_file():
        words += f" (run `{report.parent.name}` after {json.loads(report.read_text())['steps']:,} steps)"
    return f"{words}, with a new optimizer"


def _print_summary(
    settings: PretrainSettings, folder: RunFolder, last: Event, filled: list[dict[str, Any]]
) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print()
    table = Table(title=f"Held-out documents after {last['step']:,} steps, {duration(last['seconds'])}")
    for column in ("", "trained", "baseline", "accuracy"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "masked tokens, nats",
        f"{last['mlm_loss']:.3f}",
        f"{last['unigram_loss']:.3f} (unigram)",
        f"{last['mlm_accuracy']:.3f}",
    )
    if "sop_loss" in last:
        table.add_row(
            "sentence order, nats",
            f"{last['sop_loss']:.3f}",
            f"{CHANCE_LOSS:.3f} (chance)",
            f"{last['sop_accuracy']:.3f}",
        )
    console.print(table)
    gain = last["unigram_loss"] - last["mlm_loss"]
    console.print(f"The model knows {gain:.2f} nats a token more than the words' frequencies do.\n")
    for item in filled:
        guesses = ", ".join(f"{g['word']} {g['probability']:.2f}" for g in item["guesses"])
        console.print(f"  {item['sentence']}", markup=False)
        console.print(f"    → {guesses}   (was: {item['word']})", markup=False)
    console.print()
    for name, path in (
        ("model", folder.model),
        ("curves", folder.curves),
        ("metrics", folder.metrics),
        ("report", folder.page),
        ("configuration", folder.config),
    ):
        console.print(f"{name:14}{path}", markup=False)
