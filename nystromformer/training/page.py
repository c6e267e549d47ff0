"""report.md: what a run was, what it reached and what it cost, for people."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from nystromformer.settings import PretrainSettings
from nystromformer.tables import table
from nystromformer.training.display import duration
from nystromformer.training.metrics import Event, MetricsLog
from nystromformer.training.phases import Plan
from nystromformer.training.run_folder import RunFolder


def report_page(
    settings: PretrainSettings,
    folder: RunFolder,
    metrics: MetricsLog,
    filled: list[dict[str, Any]],
    plan: Plan,
) -> str:
    """The page in Markdown; its pictures lie beside it."""
    train, validation = metrics.events("train"), metrics.events("validation")
    skipped = metrics.events("skipped")
    last = validation[-1]
    columns = {name: words for name, words in _COLUMNS.items() if name in last}
    return "\n".join(
        [
            f"# {settings.name}",
            "",
            f"{last['step']:,} steps of {plan.batch_sizes} examples of at most "
            f"{settings.model.max_length} tokens in {duration(last['seconds'])}. Every setting is in "
            f"[{folder.config.name}]({folder.config.name}), every figure in "
            f"[{folder.metrics.name}]({folder.metrics.name}).",
            "",
            *_phase_lines(plan),
            f"![losses and accuracies]({folder.curves.name})",
            "",
            "## Held-out documents",
            "",
            *table(
                ("step", *columns.values()),
                (
                    (f"{event['step']:,}", *(f"{event[name]:.4f}" for name in columns))
                    for event in _at_most(validation, 12)
                ),
            ),
            "",
            "Losses are in nats: per predicted token"
            + (", and per pair of segments." * ("sop_loss" in last) or "."),
            "",
            *_approximation_lines(folder, metrics.events("approximation")),
            "## Cost",
            "",
            f"![speed, gradient norm, waiting for data]({folder.speed.name})",
            "",
            *table(("", f"median of {len(train)} readings"), _costs(train)),
            "",
            *_skipped_lines(skipped),
            "## Masked words",
            "",
            *(_filled_line(item) for item in filled),
            "",
        ]
    )


_COLUMNS = {
    "mlm_loss": "MLM loss",
    "unigram_loss": "unigram",
    "mlm_accuracy": "MLM accuracy",
    "sop_loss": "order loss",
    "sop_accuracy": "order accuracy",
}
"""Of the table of validations; a run without sentence order has not the last ones."""


def _phase_lines(plan: Plan) -> Iterable[str]:
    """The phases, where there are several."""
    if len(plan.phases) > 1:
        yield from (f"{number}. {phase.told}." for number, phase in enumerate(plan.phases, start=1))
        yield ""


def _approximation_lines(folder: RunFolder, events: list[Event]) -> Iterable[str]:
    """The section on the error of the attention; nothing where none was measured."""
    known = [event for event in events if event["mean"] is not None]
    if not events:
        return
    yield "## Approximation"
    yield ""
    last = events[-1]
    if not known:
        yield f"Attention is exact in all {last['rows']} rows that were looked at."
        yield ""
        return
    yield f"![error of each layer's attention]({folder.approximation.name})"
    yield ""
    layers = range(len(last["heads"]))
    yield from table(
        ("step", "mean", *(f"layer {number}" for number in layers)),
        (
            (
                f"{event['step']:,}",
                f"{event['mean']:.4f}",
                *(f"{event[f'layer_{number}']:.4f}" for number in layers),
            )
            for event in _at_most(known, 12)
        ),
    )
    yield ""
    exact = f"; the other {last['exact_rows']} rows are exact" if last["exact_rows"] else ""
    yield (
        "‖S − Ŝ‖ / ‖S‖ of the attention matrices in the Frobenius norm, mean over heads and "
        f"{last['rows'] - last['exact_rows']} held-out rows{exact}."
    )
    yield ""


def _costs(train: list[Event]) -> Iterable[tuple[str, str]]:
    """Rows of the table of costs; what a device or an older session did not give is left out."""
    for key, words, form in (
        ("tokens_per_second", "real tokens a second", "{:,.0f}"),
        ("padding_per_second", "padding a second", "{:,.0f}"),
        ("model_flops_per_second", "model FLOP/s", "{:.3g}"),
        ("model_flop_utilisation", "model FLOP utilisation", "{:.1%}"),
        ("data_wait", "time waiting for data", "{:.1%}"),
        ("gradient_norm", "gradient norm", "{:.3g}"),
    ):
        values = [event[key] for event in train if event.get(key) is not None]
        if values:
            yield words, form.format(median(values))
    peaks = [event["peak_memory_bytes"] for event in train if "peak_memory_bytes" in event]
    if peaks:
        yield "peak memory (largest)", f"{max(peaks) / 2**30:.2f} GiB"


def _skipped_lines(skipped: list[Event]) -> Iterable[str]:
    if not skipped:
        return
    yield f"{len(skipped)} steps were skipped, because their gradient was not finite:"
    yield ""
    yield from table(
        ("step", "first parameter", "first layer"),
        ((str(e["step"]), f"`{e['parameter']}`", f"`{e['layer']}`" if e["layer"] else "") for e in skipped),
    )
    yield ""


def _filled_line(item: dict[str, Any]) -> str:
    guesses = ", ".join(f"{guess['word']} {guess['probability']:.2f}" for guess in item["guesses"])
    return f"- {item['sentence']} → {guesses} (was: {item['word']})"


def _at_most(events: list[Event], count: int) -> list[Event]:
    """Events spread evenly, the first and the last among them."""
    if len(events) <= count:
        return events
    return [events[round(number * (len(events) - 1) / (count - 1))] for number in range(count)]
