"""The operator for CPUs: its gradient, torch.compile, checkpointing, and what it keeps."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from nystromformer import nystrom_attention
from nystromformer.attention import native

MASKS = {
    "none": None,
    "right": torch.arange(14) >= torch.tensor([[14], [9], [3]]),
    "scattered": torch.tensor(
        [[0] * 14, [1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1], [0, 0] + [1] * 12]
    ).bool(),
}


def leaves(dtype=torch.float64, length=14):
    made = [torch.randn(3, length, 2, 3, dtype=dtype).transpose(1, 2) for _ in range(3)]
    made.append(torch.randn(2, 1, 3, 1, dtype=dtype))
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck(mask):
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(
        lambda q, k, v, w: nystrom_attention(
            q, k, v, num_landmarks=4, conv_weight=w, key_padding_mask=MASKS[mask], pinv_iterations=3
        ),
        leaves(),
        fast_mode=True,  # a random direction in place of every entry
    )


@pytest.mark.parametrize("mask", ["none", "right"])
def test_compile_without_graph_breaks(mask):
    torch.manual_seed(1)
    inputs = leaves(torch.float32)

    def attention(query, key, value, conv_weight):
        return nystrom_attention(
            query, key, value, num_landmarks=4, conv_weight=conv_weight, key_padding_mask=MASKS[mask]
        )

    eager = attention(*inputs)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, eager)
    seed = torch.randn_like(eager)
    for a, b in zip(
        torch.autograd.grad(compiled, inputs, seed), torch.autograd.grad(eager, inputs, seed), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_checkpointing_changes_nothing():
    torch.manual_seed(2)
    inputs = leaves()
    mask = MASKS["right"]

    def attention(q, k, v, w):
        return nystrom_attention(q, k, v, num_landmarks=4, conv_weight=w, key_padding_mask=mask)

    plain = torch.autograd.grad(attention(*inputs).sum(), inputs)
    again = torch.autograd.grad(checkpoint(attention, *inputs, use_reentrant=False).sum(), inputs)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
def test_pytorchs_own_check_of_the_operator_with_neighbours():
    torch.manual_seed(3)
    tensors = [torch.randn(2, 70, 2, 16).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = torch.rand(2, 70) < 0.2
    weight = torch.randn(2, 1, 3, 1, requires_grad=True)
    alone = torch.ops.nystromformer.nystrom_attention.default
    torch.library.opcheck(alone, (*tensors, mask, weight, 16, 2))
    operator = torch.ops.nystromformer.neighbours_attention.default
    torch.library.opcheck(operator, (*tensors, mask, weight, 16, 2, 16, 1))
    torch.library.opcheck(operator, (*tensors, mask, None, 16, 2, 16, 9))
    torch.library.opcheck(operator, (*tensors, None, None, 16, 2, 48, 1))  # exact


@pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
@pytest.mark.parametrize("salient", [1, 9])
@pytest.mark.parametrize("mask", [None, torch.arange(70) >= torch.tensor([[70], [50]])])
def test_compile_without_graph_breaks_with_neighbours(mask, salient):
    torch.manual_seed(1)
    inputs = [torch.randn(2, 70, 2, 16).transpose(1, 2).requires_grad_() for _ in range(3)]

    def attention(query, key, value):
        return nystrom_attention(
            query,
            key,
            value,
            num_landmarks=16,
            key_padding_mask=mask,
            neighbours=16,
            salient_tokens=salient,
        )

    eager = attention(*inputs)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(compiled, eager)
    grads = (torch.autograd.grad(out.square().sum(), inputs) for out in (compiled, eager))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_pytorchs_own_check_of_the_operator_without_the_kernel():
    torch.manual_seed(3)
    query, key, value, weight = leaves()
    torch.library.opcheck(
        torch.ops.nystromformer.nystrom_attention.default,
        (query, key, value, MASKS["scattered"], weight, 4, 2),
    )


def test_output_lies_in_memory_as_the_next_layer_reads_it():
    query, key, value, _ = leaves()
    out = nystrom_attention(query, key, value, num_landmarks=4)
    merged = out.transpose(1, 2).flatten(2)
    assert merged.data_ptr() == out.data_ptr()


@pytest.mark.parametrize(("neighbours", "salient"), [(None, 1), (64, 1), (64, 64)])
@pytest.mark.parametrize("length", [512, 4096])
def test_little_is_kept_beyond_the_inputs(length, neighbours, salient):
    inputs = [torch.randn(1, length, 12, 64).transpose(1, 2).requires_grad_() for _ in range(3)]
    given = {x.untyped_storage().data_ptr() for x in inputs}
    kept: dict[int, int] = {}

    def note(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        nystrom_attention(*inputs, num_landmarks=64, neighbours=neighbours, salient_tokens=salient)
    beyond = sum(size for pointer, size in kept.items() if pointer not in given)
    landmarks = 12 * 64 * (4 * 64 + 1) * 4  # four tensors and a column of 64 rows a head, at any length
    # Two numbers a token, and the salient tokens' places.
    assert beyond <= landmarks + (0 if neighbours is None else 12 * (length * 2 + salient) * 4)


def test_a_second_derivative_is_refused_in_words():
    def differentiated_twice(*inputs):
        out, *_ = torch.ops.nystromformer.nystrom_attention(*inputs, None, None, 16, 6)
        (first,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
        first.sum().backward()

    with pytest.raises(RuntimeError, match="differentiable once"):  # where the kernel cannot compute it
        differentiated_twice(*leaves()[:3])
    if native.library() is not None:
        with pytest.raises(RuntimeError, match="nystrom_attention_backward"):
            differentiated_twice(*(torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3)))
    if native.library() is not None:
        query, key, value = (torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3))
        out = nystrom_attention(query, key, value, num_landmarks=16)
        (first,) = torch.autograd.grad(out.sum(), query, create_graph=True)
        with pytest.raises(RuntimeError, match="nystrom_attention_backward"):
            first.sum().backward()


class Operators(TorchDispatchMode):
    """Notes this project's operators."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "nystromformer":
            self.seen.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
@pytest.mark.parametrize("mask", [None, "some"])
def test_past_the_dispatcher_the_same_is_computed(mask):
    """By an autograd function of its own where nobody looks on, by the operator where somebody does."""
    torch.manual_seed(6)
    inputs = [torch.randn(2, 70, 2, 16).transpose(1, 2).requires_grad_() for _ in range(3)]
    inputs.append(torch.randn(2, 1, 5, 1).requires_grad_())
    padding = None if mask is None else torch.arange(70) >= torch.tensor([[70], [51]])
    results, seen = [], []
    for mode in (nullcontext(), Operators()):
        with mode:
            out = nystrom_attention(
                *inputs[:3], num_landmarks=16, conv_weight=inputs[3], key_padding_mask=padding
            )
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        seen.append(getattr(mode, "seen", None))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert seen[1] == ["nystrom_attention", "nystrom_attention_backward"]
    assert results[0][0].grad_fn.name() == "nystrom_attentionBackward"
    with torch.no_grad():
        assert not nystrom_attention(*inputs[:3], num_landmarks=16).requires_grad
