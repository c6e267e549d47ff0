"""BERT-small beside Nyströmformer-small: masked-token and sentence-order curves on the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.pictures import STYLES, figure, save
from nystromformer.reproduce.result import Result
from nystromformer.reproduce.runs import at_chance, composed_run, finished_run, validations
from nystromformer.settings import PretrainSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import table

FIGURES = {
    "mlm_loss": "MLM loss, nats",
    "mlm_accuracy": "MLM accuracy",
    "sop_loss": "SOP loss, nats",
    "sop_accuracy": "SOP accuracy",
}


def small(settings: ReproduceSettings) -> Result:
    """Train both, or read the finished runs: curves, last figures, time.

    Raises:
        UserError: the words of the two runs ask for different batches.
    """
    scale = settings.scale.small
    bert, nystromformer = (composed_run(settings, words) for words in (scale.bert, scale.nystromformer))
    check_same_batches(bert, nystromformer)
    runs: dict[str, PretrainSettings] = {}
    for model, words in (("BERT", scale.bert), ("Nyströmformer", scale.nystromformer)):
        print(f"\n== {model}", flush=True)
        runs[model] = finished_run(settings, words)
    curves = {model: validations(run) for model, run in runs.items()}
    last = {model: events[-1] for model, events in curves.items()}
    faster = last["BERT"]["seconds"] / last["Nyströmformer"]["seconds"]
    lines = [
        f"{bert.model.num_hidden_layers} layers of {bert.model.hidden_size}, {bert.model.max_length} tokens, "
        f"{bert.training.steps:,} steps of {bert.training.global_batch_size} rows, from the same seed on the "
        f"same batches; Nyströmformer with {nystromformer.model.num_landmarks} landmarks and a convolution "
        f"of {nystromformer.model.conv_kernel_size}. Held-out documents, after the last step:",
        "",
        *table(
            ("model", *FIGURES.values(), "minutes"),
            [
                (model, *(f"{event[name]:.3f}" for name in FIGURES), f"{event['seconds'] / 60:.1f}")
                for model, event in last.items()
            ],
        ),
        "",
        f"BERT took {faster:.2f} times the time of Nyströmformer, validations included. The paper "
        "compares models of 4 layers after 0.1 M steps each, in curves, without figures to put beside these.",
        *at_chance([event["sop_accuracy"] for event in last.values()], rows=last["BERT"]["rows"]),
    ]
    gap = last["BERT"]["mlm_accuracy"] - last["Nyströmformer"]["mlm_accuracy"]
    return Result(
        title="BERT-small and Nyströmformer-small on the same batches",
        measured={"validations": curves, "time_ratio": faster, "mlm_accuracy_gap": gap},
        lines=lines,
        headline=f"MLM accuracy {last['BERT']['mlm_accuracy']:.3f} (BERT) and "
        f"{last['Nyströmformer']['mlm_accuracy']:.3f} (Nyströmformer); BERT took {faster:.2f} times the time",
        plots={"small": _draw},
    )


def check_same_batches(one: PretrainSettings, other: PretrainSettings) -> None:
    """What the batches are a function of has to be equal in both runs; raises UserError."""
    for name in ("data", "tokenizer", "training"):
        if getattr(one, name) != getattr(other, name):
            raise UserError(
                f"scale.small: {one.name} and {other.name} differ in {name}, so that their batches or "
                "steps differ: write the same words for both but for model and name"
            )
    if one.model.max_length != other.model.max_length:
        raise UserError(
            f"scale.small: {one.name} has model.max_length={one.model.max_length} and {other.name} "
            f"{other.model.max_length}: write the same for both"
        )


def _draw(measured: dict[str, Any], path: Path) -> None:
    with figure(1, 2, width="page", height=2.3) as (fig, axes):
        for axis, name in zip(axes, ("mlm_accuracy", "sop_accuracy"), strict=True):
            for (model, events), style in zip(measured["validations"].items(), STYLES, strict=False):
                axis.plot(
                    [event["step"] for event in events],
                    [event[name] for event in events],
                    **style,
                    label=model,
                )
            axis.set(title=f"{FIGURES[name]}, held-out documents", xlabel="step", ylabel="accuracy")
            axis.legend()
        save(fig, path)
