"""The error of Nyström attention while training goes on: the same held-out rows every time.

Shapes: L layers, B rows, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator

from nystromformer.data.layout import Batch
from nystromformer.model import NystromformerForPreTraining
from nystromformer.model.diagnostics import approximation_error
from nystromformer.training.metrics import Event


def measure_approximation(
    model: NystromformerForPreTraining,
    batches: Iterable[tuple[Batch, bool]],
    accelerator: Accelerator,
    autocast: torch.autocast,
    step: int,
) -> Event:
    """The error's mean over all processes' rows, as an event.

    Rows of at most m tokens take exact attention; they are counted and not averaged. All processes
    call it together.

    Args:
        batches: each with whether it counts.

    Returns:
        `layer_0` … and their `mean`, null where every row is exact; `heads`, [layer][head]; `rows`
        and those of them that are `exact_rows`.
    """
    config = model.config
    # Of each head the sum of its errors, and at the end: approximated rows, rows.
    sums = torch.zeros(config.num_hidden_layers * config.num_attention_heads + 2, device=accelerator.device)
    for batch, counts in batches:
        with autocast:
            found = approximation_error(model, batch)
        if not counts:
            continue
        approximated_B = ~found.exact_LB[0]  # of every layer alike: it depends on the row's length
        of_heads_LH = found.error_LBH[:, approximated_B].sum(1)
        rows = torch.stack(
            [approximated_B.sum(), torch.tensor(len(approximated_B)).to(approximated_B.device)]
        )
        sums += torch.cat([of_heads_LH.flatten(), rows]).to(sums)
    *errors, approximated, rows = accelerator.reduce(sums, "sum").tolist()
    heads_LH = None
    if approximated:
        heads_LH = (torch.tensor(errors) / approximated).view(config.num_hidden_layers, -1)
    of_layers = [None] * config.num_hidden_layers if heads_LH is None else heads_LH.mean(1).tolist()
    return {
        "kind": "approximation",
        "step": step,
        "mean": None if heads_LH is None else heads_LH.mean().item(),
        **{f"layer_{number}": error for number, error in enumerate(of_layers)},
        "heads": None if heads_LH is None else heads_LH.tolist(),
        "rows": int(rows),
        "exact_rows": int(rows - approximated),
    }
