"""The linear-kernel experiment: a matrix of rank d from m of its rows and columns, for growing m.

Shapes: T draws, n rows of Q and K, d their width, m landmarks.

    A = Q Kᵀ ≈ (Q K̃ᵀ) (Q̃ K̃ᵀ)⁺ (Q̃ Kᵀ),   Q̃ and K̃ the first m rows of Q and K, which are random
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromformer.pictures import STYLES, legend_below, picture
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import table

SMALLEST = 1e-10
"""Singular values below this share of the largest count as zero: they are rounding where m > d."""
SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles over the draws."""


def nystrom_tutorial(settings: ReproduceSettings) -> Result:
    """The Frobenius error, averaged over random draws, for each number of landmarks."""
    scale = settings.scale.nystrom_tutorial
    generator = torch.Generator().manual_seed(0)
    query_Tnd, key_Tnd = torch.randn(
        2, scale.draws, scale.size, scale.width, dtype=torch.float64, generator=generator
    )
    norm = float((query_Tnd @ key_Tnd.mT).norm(dim=(-2, -1)).mean())
    errors = {count: _summary(nystrom_error(query_Tnd, key_Tnd, count)) for count in scale.landmarks}
    below = [count for count in errors if count < scale.width]
    at = [count for count in errors if count >= scale.width]
    headline = f"n = {scale.size}, width {scale.width}: "
    headline += f"mean error {errors[below[0]]['mean']:.3g} at {below[0]} landmark(s)" if below else ""
    headline += f", {errors[at[0]]['mean']:.2g} at {at[0]}" if at else ""
    blocks = [
        f"Queries and keys of n = {scale.size} rows and width {scale.width}, standard normal, in float64; "
        f"{scale.draws:,} draws, the same for every number of landmarks. ‖A − Â‖ in the Frobenius norm "
        f"(‖A‖ is {norm:.1f} in the mean):",
        table(
            ("landmarks", "mean", "standard error", "10 %", "median", "90 %"),
            [
                (
                    count, f"{one['mean']:.3g}", f"{one['standard_error']:.2g}",
                    f"{one['quantiles'][0]:.3g}", f"{one['quantiles'][2]:.3g}", f"{one['quantiles'][-1]:.3g}",
                )
                for count, one in errors.items()
            ],
        ),
        f"Published: a mean over 10 draws that falls to about zero at {scale.width} landmarks, the rank of "
        "the matrix, after which any landmarks span it. What differs: more draws, and the spread. With fewer "
        "landmarks than the rank some draws have a nearly singular core Q̃K̃ᵀ and errors far above the "
        "matrix itself, so the mean wanders and the median tells more.",
    ]  # fmt: skip
    return Result(
        title="Nyström approximation of a linear kernel",
        measured={"norm": norm, "errors": errors},
        blocks=blocks,
        headline=headline,
        plots={"nystrom_tutorial": lambda measured, path: _draw(measured, path, scale.width)},
    )


def nystrom_error(query_Tnd: Tensor, key_Tnd: Tensor, landmarks: int) -> Tensor:
    """‖A − Â‖ of each draw, (T,), with the first rows as landmarks."""
    query_Tmd, key_Tmd = query_Tnd[:, :landmarks], key_Tnd[:, :landmarks]
    core_Tmm = torch.linalg.pinv(query_Tmd @ key_Tmd.mT, rtol=SMALLEST)
    found_Tnn = (query_Tnd @ key_Tmd.mT) @ core_Tmm @ (query_Tmd @ key_Tnd.mT)
    return (query_Tnd @ key_Tnd.mT - found_Tnn).norm(dim=(-2, -1))


def _summary(error_T: Tensor) -> dict[str, Any]:
    return {
        "mean": float(error_T.mean()),
        "standard_error": float(error_T.std() / len(error_T) ** 0.5),
        "quantiles": error_T.quantile(torch.tensor(SHOWN, dtype=error_T.dtype)).tolist(),
    }


def _draw(measured: dict[str, Any], path: Path, width: int) -> None:
    counts, found = [int(count) for count in measured["errors"]], list(measured["errors"].values())
    floor = 1e-13  # a logarithmic axis has no zero

    def of(place: int) -> list[float]:
        return [max(one["quantiles"][place], floor) for one in found]

    with picture(path, height=2.9) as (figure, axis):
        axis.fill_between(counts, of(0), of(-1), color="0.85", label="10 to 90 % of draws")
        axis.fill_between(counts, of(1), of(-2), color="0.65", label="25 to 75 %")
        axis.plot(counts, of(2), **STYLES[0], label="median")
        axis.plot(counts, [max(one["mean"], floor) for one in found], **STYLES[1], label="mean")
        axis.axvline(width, color="black", linewidth=0.8, linestyle=":", label="rank of the matrix")
        axis.set(xlabel="landmarks", ylabel="Frobenius error", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        legend_below(figure, axis, columns=2)
