"""Power laws of a loss, fitted as in appendix D.3 of Hoffmann et al. 2022: Huber's loss of the log loss.

    L = E + Σ_x A_x (x / x₀)^(−α_x)        x the compute C, or the size N and the data D

x₀ is the geometric mean of the points' x, so that A_x is what is still to be gained by x at the middle of
what was measured, in nats; the paper's A is A_x · x₀^α_x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nystromformer.errors import UserError
from nystromformer.intervals import Interval, middle_of

Floats = NDArray[np.float64]
HUBER = 1e-3
"""Where Huber's loss becomes linear, in log loss."""
UNIDENTIFIED = 10.0
"""The factor that an interval spans beyond which the points do not say what the parameter is."""
_STEEPEST = 3.0
_LEAST = 1e-3  # nats


@dataclass(frozen=True)
class Law:
    """A fitted law and the 95 % interval of each parameter."""

    centres: dict[str, float]
    """x₀ of each quantity."""
    parameters: dict[str, float]
    """E, then A and α of each quantity, e.g. `A_N` and `α_N`; nats and powers."""
    intervals: dict[str, Interval]
    residual: float
    """Median of |log L̂ − log L| over the points."""

    def loss(self, quantities: Mapping[str, Floats]) -> Floats:
        """L at such quantities, (P,) each."""
        found = np.asarray(self.parameters["E"])
        for name, centre in self.centres.items():
            power = (np.asarray(quantities[name]) / centre) ** -self.parameters[f"α_{name}"]
            found = found + self.parameters[f"A_{name}"] * power
        return found

    @property
    def unidentified(self) -> list[str]:
        """Parameters that the points do not tell: the interval spans more than UNIDENTIFIED, ends where the
        fit may go no further, or does not hold the value. Without E nothing else is known either: every
        A and α is then that of one E among many.
        """
        found = []
        for name, (low, high) in self.intervals.items():
            power = name.startswith("α")
            at_end = low < 2 * _LEAST or (power and high > 0.99 * _STEEPEST)
            holds = low * (1 - 1e-6) <= self.parameters[name] <= high * (1 + 1e-6)
            if at_end or high > UNIDENTIFIED * low or not holds:
                found.append(name)
        return list(self.parameters) if "E" in found else found


def fit_law(
    loss: Floats,
    quantities: Mapping[str, Floats],
    runs: Sequence[str],
    sizes: Sequence[str],
    *,
    draws: int = 200,
) -> Law:
    """The law through points (P,), with intervals by a bootstrap over the runs: points of a run are no
    independent measurements. Runs are drawn within each size, so that every draw has all sizes.

    Args:
        loss: nats.
        quantities: what it is a law of, by name.
        runs: which run a point is of, (P,).
        sizes: which size of model, (P,).

    Raises:
        UserError: fewer than three runs, or no more points than parameters.
    """
    names = sorted(set(runs))
    if len(names) < 3 or len(loss) <= 1 + 2 * len(quantities):
        raise UserError(
            f"a fit of {1 + 2 * len(quantities)} parameters to {len(loss)} points of {len(names)} runs says "
            "nothing: write at least three scale.scaling.sizes and two scale.scaling.lengths"
        )
    points_of = {name: np.flatnonzero(np.asarray(runs) == name) for name in names}
    strata: dict[str, list[str]] = {}
    for name in names:
        strata.setdefault(sizes[points_of[name][0]], []).append(name)
    centres = {name: float(np.exp(np.log(values).mean())) for name, values in quantities.items()}
    x_PQ = np.stack([np.log(values / centres[name]) for name, values in quantities.items()], axis=1)
    log_loss = np.log(loss)
    best = _fit(log_loss, x_PQ, _starts(log_loss, len(centres)))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        chosen = [points_of[run] for of_size in strata.values() for run in rng.choice(of_size, len(of_size))]
        points = np.concatenate(chosen)
        # Along a valley where the points say little, a fit stays near its start: each draw has another one.
        starts = _starts(log_loss[points], len(centres))
        some = [starts[rng.integers(len(starts))], best]
        drawn.append(_natural(_fit(log_loss[points], x_PQ[points], some)))
    keys = ["E", *(f"A_{name}" for name in centres), *(f"α_{name}" for name in centres)]
    return Law(
        centres,
        dict(zip(keys, _natural(best).tolist(), strict=True)),
        {key: middle_of(values) for key, values in zip(keys, np.asarray(drawn).T, strict=True)},
        float(np.median(np.abs(_log_loss(best, x_PQ)[0] - log_loss))),
    )


def _natural(theta: Floats) -> Floats:
    """(log E, log A …, α …) with E and A themselves."""
    logs = 1 + len(theta) // 2
    return np.concatenate([np.exp(theta[:logs]), theta[logs:]])


def _starts(log_loss: Floats, count: int) -> list[Floats]:
    """Where a fit begins: shares of the lowest loss that are E, and powers."""
    lowest = log_loss.min()
    return [
        np.array([lowest + np.log(share), *[lowest + np.log((1 - share) / count)] * count, *powers])
        for share in (0.2, 0.8)
        for powers in product((0.2, 0.7), repeat=count)
    ]


def _log_loss(theta: Floats, x_PQ: Floats) -> tuple[Floats, Floats]:
    """log L̂ of each point, and its derivatives by the parameters, (P, 1 + 2 Q)."""
    count = x_PQ.shape[1]
    terms_PT = np.concatenate(
        [np.full((len(x_PQ), 1), theta[0]), theta[1 : 1 + count] - theta[1 + count :] * x_PQ], 1
    )
    log_loss = np.logaddexp.reduce(terms_PT, axis=1)
    share_PT = np.exp(terms_PT - log_loss[:, None])
    return log_loss, np.concatenate([share_PT, -share_PT[:, 1:] * x_PQ], axis=1)


def _fit(log_loss: Floats, x_PQ: Floats, starts: Sequence[Floats]) -> Floats:
    """(log E, log A …, α …) of the best of several starts."""
    from scipy.optimize import least_squares

    count = x_PQ.shape[1]
    low = np.array([np.log(_LEAST)] * (1 + count) + [0.0] * count)
    high = np.array([log_loss.min(), *[log_loss.max()] * count, *[_STEEPEST] * count])
    margin = 1e-6 * (high - low)
    found = [
        least_squares(
            lambda theta: _log_loss(theta, x_PQ)[0] - log_loss,
            np.clip(start, low + margin, high - margin),
            jac=lambda theta: _log_loss(theta, x_PQ)[1],
            bounds=(low, high), loss="huber", f_scale=HUBER,
        )
        for start in starts
    ]  # fmt: skip
    return np.asarray(min(found, key=lambda each: each.cost).x)
