"""Efficiency, the heads' figures and the linear-kernel experiment, at smoke size and by known answers."""

import json
from itertools import pairwise

import pytest
import torch

from nystromformer.attention.pseudoinverse import iterate
from nystromformer.benchmark.measure import peak_of
from nystromformer.cli import main
from nystromformer.reproduce.efficiency import OURS, ROWS, STORED, contender, published_ratios
from nystromformer.reproduce.heads import residuals
from nystromformer.reproduce.nystrom_tutorial import nystrom_error
from nystromformer.reproduce.trained_heads import TrainedHeads
from nystromformer.settings.scale import EfficiencyScale

CPU = torch.device("cpu")


def produced(tmp_path, *words):
    assert main(["reproduce", *words, "scale=smoke", f"folder={tmp_path}"]) == 0
    folder = tmp_path / f"{words[0].partition('=')[2]}_smoke"
    for picture in folder.glob("*.png"):
        assert picture.stat().st_size > 10_000
    return json.loads((folder / "result.json").read_text())["measured"], (folder / "README.md").read_text()


def test_a_linear_kernel_is_exact_from_its_rank_on(tmp_path):
    measured, _ = produced(tmp_path, "figure=nystrom_tutorial")
    errors = {int(count): one["mean"] for count, one in measured["errors"].items()}
    assert min(errors[2], errors[5]) > 1
    assert max(errors[10], errors[15]) < 1e-6


def test_one_landmark_reproduces_its_row_and_column():
    query, key = torch.randn(2, 1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rest = query[:, 1:] @ key[:, 1:].mT - (query[:, 1:] @ key[:, :1].mT) @ (query[:, :1] @ key[:, 1:].mT) / (
        query[:, :1] @ key[:, :1].mT
    )
    assert nystrom_error(query, key, 1) == pytest.approx(rest.norm().item())


def test_peak_memory_of_known_tensors():
    def run():
        first = torch.empty(1000)
        second = torch.empty(3000)
        del first
        third = torch.empty(500)
        return second, third

    assert peak_of(run, CPU) == pytest.approx(4 * 4000, abs=1024)


def test_peak_memory_sees_an_operators_workspace_and_no_older_tensor():
    x = torch.randn(1 << 16)
    assert peak_of(lambda: (x * 2).sum() + 1, CPU) == pytest.approx(4 * 2**16, abs=1024)


def test_the_stored_form_holds_its_matrices():
    scale = EfficiencyScale(heads=2, head_dim=16)
    stored, ours = (contender(name, scale, 512, CPU) for name in (STORED, OURS))
    matrix = 2 * 512**2 * 4
    with torch.no_grad():
        assert peak_of(stored.run, CPU) >= 2 * matrix
        assert peak_of(ours.run, CPU) < matrix


def test_the_exact_rows_agree():
    scale = EfficiencyScale(heads=2, head_dim=16)
    stored, fused = (contender(name, scale, 64, CPU) for name in (STORED, "exact, fused"))
    torch.testing.assert_close(stored.run(), fused.run(), atol=1e-5, rtol=1e-4)


def test_published_ratios_are_those_of_the_paper():
    ours = published_ratios()[OURS]
    assert ours["4096"]["seconds"] == pytest.approx(5.6, abs=0.05)
    assert ours["8192"]["seconds"] == pytest.approx(12.7, abs=0.1)
    assert ours["4096"]["bytes"] == pytest.approx(11.5, abs=0.1)
    assert ours["8192"]["bytes"] == pytest.approx(22.8, abs=0.1)


def test_efficiency(tmp_path):
    measured, page = produced(tmp_path, "table=efficiency")
    for rows in measured["lengths"].values():
        assert rows.keys() == ROWS.keys()
        for row in rows.values():
            assert row["training"]["bytes"] > row["inference"]["bytes"] > 0
    stored, ours = (measured["lengths"]["1024"][name]["inference"] for name in (STORED, OURS))
    ratio = measured["transformer_over_row"]["inference"][OURS]["1024"]
    assert ratio["seconds"] == pytest.approx(stored["median"] / ours["median"])
    assert ratio["bytes"] == pytest.approx(stored["bytes"] / ours["bytes"])
    assert "(1.8)" in page  # the paper's time at 1024


def test_what_does_not_fit_is_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("nystromformer.reproduce.efficiency._free", lambda device: 10_000_000)
    measured, page = produced(tmp_path, "table=efficiency")
    assert measured["lengths"]["1024"][STORED]["training"] is None
    assert measured["transformer_over_row"]["training"][OURS]["1024"]["seconds"] is None
    assert "out of memory" in page


def random_heads(tokens):
    query, key = torch.randn(2, 1, 2, 3, tokens, 8, generator=torch.Generator().manual_seed(0))
    return TrainedHeads(query, key, "random")


def test_heads_are_exact_when_every_token_is_a_landmark():
    heads = random_heads(tokens=12)
    assert heads.errors(num_landmarks=12).max() == 0
    few = heads.errors(num_landmarks=4)
    assert few.min() > 0
    apart = heads.exact(1, 2) - heads.approximated(1, 2, num_landmarks=4)
    assert few[0, 1, 2] == pytest.approx((apart.norm() / heads.exact(1, 2).norm()).item(), rel=1e-5)


def test_shown_heads_differ():
    assert len(set(random_heads(tokens=12).shown(6))) == 6


def test_residuals_follow_lemma_1():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.softmax(torch.randn(8, 8, dtype=torch.float64, generator=generator) + 3 * torch.eye(8), -1)
    found = residuals(kernel, 24)
    for before, after in pairwise(found):
        if before > 1e-4:
            assert after == pytest.approx(0.25 * (3 * before**3 + before**4), rel=1e-6, abs=1e-11)
    assert found[-1] < 1e-12
    torch.testing.assert_close(kernel @ iterate(kernel[None], 24)[0], torch.eye(8, dtype=torch.float64))


def test_figures_of_the_trained_bert(tmp_path):
    measured, page = produced(tmp_path, "figure=landmarks")
    mean = {method: one["mean"] for method, one in measured["errors"].items()}
    in_order = mean["segment_means"] < min(mean["uniform"], 1.25 * mean["kmeans"])
    assert measured["in_order"] == in_order
    assert ("differs from the paper**" in page) == (not in_order)
    measured, _ = produced(tmp_path, "figure=num_landmarks")
    assert measured["errors"].keys() == {"4", "8", "16"}
    measured, _ = produced(tmp_path, "figure=pseudoinverse")
    assert len(measured["residuals"]) == 6
    assert min(curve[-1] for curve in measured["residuals"]) < 1e-6
