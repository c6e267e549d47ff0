"""Vectors compared: losses against sentence-transformers' own, and what is no wrong answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from nystromformer.tasks.contrast import Pairs, agreement, contrastive, matched_similarities, ranks


def unit(rows: int, width: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pairs_of(
    vectors: Tensor,
    candidates: Tensor,
    anchor_text: list[int] | None = None,
    candidate_text: list[int] | None = None,
) -> Pairs:
    """The first candidates are the anchors' own; texts are all different unless they are given."""
    n, m = len(vectors), len(candidates)
    anchors = torch.tensor(anchor_text or [*range(n)])
    texts = torch.tensor(candidate_text or [*range(100, 100 + m)])
    owner = torch.cat([anchors, torch.full((m - n,), -1)])
    return Pairs(vectors, candidates, torch.arange(n), anchors, texts, owner)


@pytest.fixture(scope="module")
def nobody() -> SentenceTransformer:
    """The losses want a model, and read none of it here."""
    return SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_the_loss_and_its_gradient_are_those_of_sentence_transformers(negatives, nobody):
    columns = [(3 * unit(5, seed=number)).requires_grad_() for number in range(2 + negatives)]
    anchors, *others = (F.normalize(column, dim=-1) for column in columns)
    ours = contrastive(pairs_of(anchors, torch.cat(others)), 0.05).mean()
    theirs = MultipleNegativesRankingLoss(nobody, scale=20.0).compute_loss_from_embeddings(columns, None)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for one, other in zip(*(torch.autograd.grad(loss, columns) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_both_directions_are_those_of_sentence_transformers(nobody):
    columns = [unit(5, seed=number) for number in range(2)]
    pairs = pairs_of(*columns)
    ours = (contrastive(pairs, 0.1).mean() + contrastive(pairs.turned(), 0.1).mean()) / 2
    directions = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    loss = MultipleNegativesRankingLoss(nobody, scale=10.0, **directions)
    assert ours.item() == pytest.approx(loss.compute_loss_from_embeddings(columns, None).item(), rel=1e-5)


def test_a_candidate_that_is_no_wrong_answer_does_not_count():
    anchors, candidates = unit(4), unit(6, seed=1)
    # Anchors 0 and 1 are one query; candidates 2 and 4 are one text; candidate 5 is the text of anchor 3.
    pairs = pairs_of(anchors, candidates, [0, 0, 2, 3], [10, 11, 12, 13, 12, 3])
    counted = torch.tensor(
        [[1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool
    )
    assert torch.equal(pairs.scores().isfinite(), counted)
    cosines = anchors @ candidates.T / 0.05
    wanted = [cosines[n][counted[n]].logsumexp(0) - cosines[n, n] for n in range(4)]
    torch.testing.assert_close(contrastive(pairs, 0.05), torch.stack(wanted))
    # The other way round: passage 2 is told from all anchors, passages 0 and 1 not from each other's.
    back = pairs.turned().scores().isfinite()
    assert back.tolist() == [[True, False, True, True], [False, True, True, True], [True] * 4, [True] * 4]


def test_many_anchors_are_compared_as_few_are(monkeypatch):
    pairs = pairs_of(unit(50), unit(70, seed=1))
    whole, places = contrastive(pairs, 0.05), ranks(pairs)
    monkeypatch.setattr("nystromformer.tasks.contrast._AT_ONCE", 7)
    torch.testing.assert_close(contrastive(pairs, 0.05), whole)
    assert torch.equal(ranks(pairs), places)
    order = np.argsort(-pairs.scores().numpy(), axis=1)
    assert places.tolist() == [int(np.where(row == n)[0][0]) + 1 for n, row in enumerate(order)]


def test_a_model_that_gives_all_texts_one_vector_is_no_good():
    vectors = unit(1).expand(8, -1)
    assert ranks(pairs_of(vectors, vectors)).tolist() == [8] * 8
    assert agreement(vectors, unit(8)) == 0.0


def test_similarities_are_learned_when_they_are_the_teachers_whatever_its_width():
    teachers = unit(12, 9)
    turned = teachers @ torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(3)))[0]
    wider = torch.cat([turned, torch.zeros(12, 5)], dim=1)
    nothing = matched_similarities(wider, wider, 3 * teachers, 0, 0.05)
    assert nothing.abs().max() < 1e-4
    assert agreement(wider, teachers) == pytest.approx(1.0)
    own = unit(12, 4, seed=5)
    whole = matched_similarities(own, own, teachers, 0, 0.05)
    assert whole.min() > 0.01
    part = matched_similarities(own[4:7], own, teachers, 4, 0.05)  # as one of several processes sees it
    torch.testing.assert_close(part, whole[4:7])
    cosines = teachers @ teachers.T / 0.05
    others = torch.arange(12) != 0
    wanted = F.kl_div(
        (own[0] @ own.T / 0.05)[others].log_softmax(-1), cosines[0][others].softmax(-1), reduction="sum"
    )
    assert whole[0].item() == pytest.approx(wanted.item(), rel=1e-4)
