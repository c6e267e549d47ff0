"""Vectors compared with each other: losses for training, ranks for looking.

Shapes: T texts of a batch, d numbers of a vector of length 1, A anchors (queries), C candidates (passages).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as with_gradient
import torch.nn.functional as F
from torch import Tensor

from nystromformer.tasks.scores import METRICS

_AT_ONCE = 1024
"""Anchors that are compared with all candidates at once."""


@dataclass(frozen=True)
class Pairs:
    """Anchors, what they are compared with, and what is known of both."""

    anchors: Tensor
    """(A, d)."""
    candidates: Tensor
    """(C, d): the anchors' own passages and negatives, and everybody else's."""
    right: Tensor
    """(A,): the candidate that is each anchor's own."""
    anchor_text: Tensor
    """(A,) int64: equal where texts are."""
    candidate_text: Tensor
    """(C,) int64, comparable with those of the anchors."""
    owner: Tensor
    """(C,): text of the anchor whose right passage it is; −1 for a negative."""

    def scores(self, rows: slice = slice(None)) -> Tensor:
        """Cosines of some anchors with all candidates, −∞ where a candidate is no wrong answer.

        Those are its own passage a second time, the anchor itself, and right passages of an equal anchor.
        """
        text, right = self.anchor_text[rows, None], self.right[rows]
        equal = self.candidate_text == self.candidate_text[right][:, None]
        no_fault = equal | (self.candidate_text == text) | (self.owner == text)
        no_fault[torch.arange(len(right), device=right.device), right] = False
        return (self.anchors[rows] @ self.candidates.T).masked_fill(no_fault, -torch.inf)

    def turned(self) -> Pairs:
        """The other way round: which anchor a right passage is of, among all anchors."""
        return Pairs(
            anchors=self.candidates[self.right],
            candidates=self.anchors,
            right=torch.arange(len(self.anchors), device=self.right.device),
            anchor_text=self.candidate_text[self.right],
            candidate_text=self.anchor_text,
            owner=self.candidate_text[self.right],
        )

    def among_all(self) -> Pairs:
        """These anchors, told from the candidates of all processes, which call it together."""
        candidates, first = gathered(self.candidates)
        return replace(
            self,
            candidates=candidates,
            right=self.right + first,
            candidate_text=gathered(self.candidate_text)[0],
            owner=gathered(self.owner)[0],
        )


def contrastive(pairs: Pairs, temperature: float) -> Tensor:
    """The cross-entropy of each anchor's own passage among all candidates, (A,), nats.

    In-batch negatives and hard ones alike, on scaled cosines: the loss of sentence-transformers'
    MultipleNegativesRankingLoss, but for candidates that are no wrong answers.
    """
    return torch.cat(
        [
            F.cross_entropy(pairs.scores(rows) / temperature, pairs.right[rows], reduction="none")
            for rows in _slices(len(pairs.anchors))
        ]
    )


def matched(vectors: Tensor, teachers: Tensor) -> Tensor:
    """How far each vector points from its teacher's, 1 − cosine, (T,)."""
    return 1 - F.cosine_similarity(vectors, teachers, dim=-1)


def matched_similarities(
    own: Tensor, everybody: Tensor, teachers: Tensor, first: int, temperature: float
) -> Tensor:
    """Divergence of each text's similarities to the others from its teacher's, (own texts,), nats.

    Both as a distribution over all other texts: softmax of cosines over the temperature. A teacher's vectors
    may have another width.

    Args:
        own, everybody: vectors of length 1, (A, d) and (T, d).
        teachers: everybody's, (T, d').
        first: place of the first own text among everybody.
    """
    teachers = F.normalize(teachers, dim=-1)
    mine = slice(first, first + len(own))
    places = torch.arange(len(everybody), device=own.device)
    itself = places[mine, None] == places
    ours, theirs = (
        (cosines / temperature).masked_fill(itself, torch.finfo(torch.float32).min).log_softmax(-1)
        for cosines in (own @ everybody.T, teachers[mine] @ teachers.T)
    )
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def ranks(pairs: Pairs) -> Tensor:
    """The place of each anchor's own passage among all candidates, (A,), 1 the best and after its equals."""
    found = []
    for rows in _slices(len(pairs.anchors)):
        scores = pairs.scores(rows)
        own = scores.gather(1, pairs.right[rows, None])
        found.append((scores >= own).sum(1))
    return torch.cat(found)


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Pearson's correlation of all texts' similarities to each other; 0 where it is open."""
    above = torch.triu_indices(len(ours), len(ours), 1).unbind()
    return METRICS["pearson"](*((x @ x.T)[above].double().numpy() for x in (ours, theirs)))


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))


# --- of several processes ------------------------------------------------------------------------------


def gathered(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes in the order of their ranks, and where this one's begin.

    Gradients of all processes' losses come back to the rows. All call it together.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in counts]
    filled = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
    if x.is_floating_point():
        everybody = with_gradient.all_gather(filled)
    else:
        everybody = [torch.empty_like(filled) for _ in sizes]
        dist.all_gather(everybody, filled)
    rows = [part[:size] for part, size in zip(everybody, sizes, strict=True)]
    return torch.cat(rows), sum(sizes[: dist.get_rank()])
