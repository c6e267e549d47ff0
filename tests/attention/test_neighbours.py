"""Nyström attention with exact neighbours: its definition, gradients, exact rows, and what it keeps.

test_properties.py has what it shares with plain Nyström attention.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nystromformer import nystrom_attention
from nystromformer.attention import native
from nystromformer.attention.neighbours import Blocks, Salient, most_salient
from nystromformer.attention.nystrom import computed_by
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.softmax import softmax_attention

from .equations import reference_nystrom

LENGTH = 45
MASKS = {
    "none": None,
    "right": torch.arange(LENGTH) >= torch.tensor([[LENGTH], [30], [3]]),
    "scattered": torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.3,
    "one row empty": torch.arange(LENGTH) >= torch.tensor([[LENGTH], [0], [20]]),
}


def leaves(dtype=torch.float64, length=LENGTH, width=3, heads=2, kernel=3):
    made = [0.7 * torch.randn(3, length, heads, width, dtype=dtype).transpose(1, 2) for _ in range(3)]
    made.append(torch.randn(heads, 1, kernel, 1, dtype=dtype))
    return [x.requires_grad_() for x in made]


def attention(mask, neighbours, m=4, salient=1):
    def run(q, k, v, weight):
        return nystrom_attention(
            q,
            k,
            v,
            num_landmarks=m,
            key_padding_mask=mask,
            conv_weight=weight,
            neighbours=neighbours,
            salient_tokens=salient,
        )

    return run


def padding_of(mask, length=LENGTH):
    return torch.zeros(3, length, dtype=torch.bool) if mask is None else mask


@pytest.mark.parametrize("neighbours", [1, 2, 5, 8, 20, 22, 23, 100])
@pytest.mark.parametrize("salient", [1, 2, 7, 100])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_its_definition_and_so_do_its_gradients(mask, neighbours, salient):
    torch.manual_seed(0)
    inputs = leaves()
    padding = padding_of(MASKS[mask])
    out = attention(MASKS[mask], neighbours, salient=salient)(*inputs)
    choices = {"neighbours": neighbours, "salient_tokens": salient}
    expected = reference_nystrom(*inputs[:3], padding, 4, inputs[3], **choices)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)
    seed = torch.randn_like(out).masked_fill(padding[:, None, :, None], 0)
    found, wanted = (torch.autograd.grad(x, inputs, seed) for x in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("length", [*range(1, 40), 63, 64, 65, 128, 129, 200, 333, 600])
def test_any_length_equals_the_definition(length):
    torch.manual_seed(length)
    inputs = leaves(length=length, width=4)
    mask = torch.rand(3, length) < torch.tensor([[0.0], [0.1], [0.6]])
    for salient in (1, 12):
        out = attention(mask, 8, m=6, salient=salient)(*inputs)
        choices = {"neighbours": 8, "salient_tokens": salient}
        expected = reference_nystrom(*inputs[:3], mask, 6, inputs[3], **choices)
        torch.testing.assert_close(out, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("salient", [1, 6])
@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck(mask, salient):
    torch.manual_seed(1)
    run = attention(MASKS[mask], 5, salient=salient)
    assert torch.autograd.gradcheck(run, leaves(), fast_mode=True)


@pytest.mark.parametrize("length", [2, 31, 32])
def test_a_row_whose_tokens_are_all_near_is_exact_attention(length):
    torch.manual_seed(2)
    q, k, v, _ = leaves(length=length)
    out = nystrom_attention(q, k, v, num_landmarks=2, neighbours=16)
    torch.testing.assert_close(out, softmax_attention(q, k, v), atol=1e-12, rtol=1e-12)


def test_the_middle_block_of_three_is_exact():
    torch.manual_seed(3)
    q, k, v, _ = leaves(length=48)
    out = nystrom_attention(q, k, v, num_landmarks=4, neighbours=16)
    exact = softmax_attention(q, k, v)
    torch.testing.assert_close(out[:, :, 16:32], exact[:, :, 16:32], atol=1e-12, rtol=1e-12)
    assert (out[:, :, 32:] - exact[:, :, 32:]).abs().max() > 1e-4


@pytest.mark.parametrize("beside", [(), (3, 17, 30), (1, 2, 44)])
def test_far_tokens_of_each_segment_are_counted(beside):
    """Against the pairs themselves, with the salient tokens near to all."""
    for n, w, m in [(1, 1, 1), (45, 5, 4), (45, 4, 7), (64, 8, 8), (33, 16, 5)]:
        blocks = Blocks.of(torch.tensor([n, max(1, n - 9)]), n, w, m)
        rank_2HS = torch.tensor([0, *beside]).expand(2, 1, -1)
        salient = Salient.of(rank_2HS, blocks)
        for row, count in enumerate([n, max(1, n - 9)]):
            segments = torch.tensor_split(torch.arange(count), m)
            for c in range(-(-n // w)):
                far = [j for j in range(1, count) if abs(j // w - c) > 1 and j not in beside]
                counted = [sum(int(j) in far for j in part) for part in segments]
                assert salient.far_BHCM[row, 0, c].tolist() == counted
                assert bool(salient.far_BHC[row, 0, c]) == bool(far)


def test_salient_are_the_first_and_those_attended_to_most_the_earlier_of_equals():
    blocks = Blocks.of(torch.tensor([7, 4]), 8, 4, 2)
    attention_2H8 = torch.tensor([0.1, 1, 3, 2, 2, 2, 0, 9]).expand(2, 1, 8)  # the 9 is padding's
    assert most_salient(attention_2H8, blocks, 1).tolist() == [[[0]], [[0]]]
    assert most_salient(attention_2H8, blocks, 4).tolist() == [[[0, 2, 3, 4]], [[0, 1, 2, 3]]]
    few = most_salient(attention_2H8, blocks, 6)
    assert few.tolist() == [[[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5]]]
    assert not Salient.of(few, blocks).beyond_BHC1S[1, ..., 4:].any()  # the second row has four


def test_salient_tokens_bring_what_the_landmarks_lose():
    """A key that every query likes, far from most: through landmarks its segment shares in it."""
    torch.manual_seed(8)
    q, k, v, _ = (x.detach() for x in leaves(length=400, width=8))
    q = q + 1
    for place in (77, 205, 333):
        k[:, :, place] = 1.5
    exact = softmax_attention(q, k, v)
    errors = [
        (nystrom_attention(q, k, v, num_landmarks=16, neighbours=16, salient_tokens=g) - exact).norm()
        for g in (1, 4)
    ]
    assert errors[1] < 0.3 * errors[0]


def test_with_all_tokens_salient_attention_is_exact():
    torch.manual_seed(9)
    q, k, v, _ = leaves(length=50)
    out = nystrom_attention(q, k, v, num_landmarks=4, neighbours=3, salient_tokens=50)
    torch.testing.assert_close(out, softmax_attention(q, k, v), atol=1e-12, rtol=1e-12)


def test_no_matrix_of_tokens_by_landmarks_or_neighbours_is_kept():
    length = 4096
    inputs = [torch.randn(1, length, 2, 64).transpose(1, 2).requires_grad_() for _ in range(3)]
    given = {x.untyped_storage().data_ptr() for x in inputs}
    kept: dict[int, int] = {}

    def note(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        nystrom_attention(*inputs, num_landmarks=64, neighbours=64)
    beyond = sum(size for pointer, size in kept.items() if pointer not in given)
    assert beyond <= 4 * 2 * (length + 6 * 64) * 64


@pytest.mark.parametrize("salient", [1, 6])
@pytest.mark.parametrize("mask", ["none", "right"])
def test_compile_without_graph_breaks(mask, salient):
    torch.manual_seed(4)
    inputs = leaves(torch.float32)
    run = attention(MASKS[mask], 5, salient=salient)
    eager = run(*inputs)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)
    seed = torch.randn_like(eager)
    found, wanted = (torch.autograd.grad(x, inputs, seed) for x in (compiled, eager))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_checkpointing_changes_nothing():
    torch.manual_seed(5)
    inputs = leaves()
    run = attention(MASKS["right"], 5, salient=6)
    plain = torch.autograd.grad(run(*inputs).sum(), inputs)
    again = torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False).sum(), inputs)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_garbage_in_the_padding_reaches_nothing(garbage):
    torch.manual_seed(6)
    clean, mask = leaves(), MASKS["scattered"]
    *qkv, weight = (x.detach() for x in clean)
    dirty = [x.masked_fill(mask[:, None, :, None], garbage).requires_grad_() for x in qkv]
    dirty.append(weight.requires_grad_())
    run = attention(mask, 5, salient=6)
    out = run(*dirty)
    assert torch.equal(out, run(*clean))
    for a, b in zip(*(torch.autograd.grad(run(*x).sum(), x) for x in (dirty, clean)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("landmarks", ["uniform", "kmeans"])
def test_other_landmarks_are_closer_to_exact_attention_with_neighbours(landmarks):
    torch.manual_seed(7)
    q, k, v, _ = leaves(length=200, width=8)
    exact = softmax_attention(q, k, v)
    errors = [
        (nystrom_attention(q, k, v, num_landmarks=16, landmarks=landmarks, neighbours=w) - exact).norm()
        for w in (None, 16, 64)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_an_impossible_block_is_named():
    q, k, v, _ = leaves()
    with pytest.raises(ValueError, match="neighbours=0"):
        nystrom_attention(q, k, v, neighbours=0)
    with pytest.raises(ValueError, match="salient_tokens=0"):
        nystrom_attention(q, k, v, neighbours=8, salient_tokens=0)


def test_what_computes_it_is_said():
    query = torch.empty(1, 1, 100, 16)
    near = {w: NystromOptions(16, neighbours=w) for w in (16, 20)}
    composed = "composed of PyTorch's operators"
    assert computed_by(query, near[20]) == composed
    assert computed_by(query.double(), near[16]) == composed
    if native.library() is not None:
        assert computed_by(query, near[16]).startswith("compiled kernel")


@pytest.mark.parametrize("implementation", ["composed", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("salient", [1, 64])
def test_gradients_are_finite_where_what_is_far_has_next_to_no_share(implementation, dtype, salient):
    """Sharp heads: the far sum's lower bound falls far below what float32 can square."""
    torch.manual_seed(0)
    given = [torch.randn(4, 4, 300, 32) * factor for factor in (3, 3, 1)]
    lengths = torch.tensor([300, 170, 130, 129])
    mask = torch.arange(300) >= lengths[:, None]
    weight = torch.randn(4, 4, 300, 32)

    def gradients(dtype, implementation):
        inputs = [x.to(dtype).requires_grad_() for x in given]
        out = nystrom_attention(
            *inputs, num_landmarks=64, key_padding_mask=mask, neighbours=64, salient_tokens=salient,
            implementation=implementation,
        )  # fmt: skip
        (out.double() * weight).sum().backward()
        return [x.grad.double() for x in inputs]

    exact = gradients(torch.float64, "composed")
    for found, right in zip(gradients(dtype, implementation), exact, strict=True):
        assert found.isfinite().all()
        if dtype == torch.float32:
            assert (found - right).norm() < 2e-3 * right.norm()


def needles(seed: int, sharpness: float, dtype=torch.float32) -> list[torch.Tensor]:
    """Some tokens look sharply at six keys far away: what their landmarks leak drowns others."""
    draw = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, 2, 300, 32, generator=draw) for _ in range(3))
    direction = torch.nn.functional.normalize(torch.randn(32, generator=draw), dim=0)
    key = key / 2
    key[:, :, torch.randint(0, 300, (6,), generator=draw)] += sharpness * direction
    query = query + sharpness * (2 * torch.rand(1, 2, 300, 1, generator=draw) - 0.5) * direction
    return [x.to(dtype).requires_grad_() for x in (query, key, value)]


def test_the_cut_of_a_landmarks_ratio_is_that_of_the_definition():
    inputs = needles(0, 8.0, torch.float64)
    run = attention(None, 16, m=16)
    weight = torch.randn(2, 1, 3, 1, dtype=torch.float64)
    out = run(*inputs, weight)
    padding = torch.zeros(1, 300, dtype=torch.bool)
    expected = reference_nystrom(*inputs, padding, 16, weight, neighbours=16)
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-8)
    direction = torch.randn_like(out)
    for found, right in zip(
        torch.autograd.grad(out, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("implementation", ["composed", "auto"])
def test_gradients_are_of_the_size_of_exact_attentions(implementation, monkeypatch):
    """Without the cut some are fifty times as large here, and 1e15 in the training of a trained BERT."""

    def most(implementation: str) -> float:
        found = []
        for seed in range(6):
            inputs = needles(seed, 10.0)
            direction = torch.randn(1, 2, 300, 32, generator=torch.Generator().manual_seed(seed))
            ours = nystrom_attention(*inputs, num_landmarks=16, neighbours=16, implementation=implementation)
            exact = softmax_attention(*inputs)
            (mine, *_), (right, *_) = (torch.autograd.grad(out, inputs, direction) for out in (ours, exact))
            found.append((mine.norm() / right.norm()).item())
        return max(found)

    assert most(implementation) < 12
    if implementation == "composed":
        monkeypatch.setattr("nystromformer.attention.neighbours.LARGEST_RATIO", 1e30)
        assert most("composed") > 30
