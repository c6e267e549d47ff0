"""Properties of Nyström attention over lengths, landmarks, batches, heads, masks and precisions.

Every way to compute it is held to them: the kernel compiled for this CPU, the operator without it, and
the one composed of PyTorch's own operators.
"""

import os

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor

from nystromformer import nystrom_attention
from nystromformer.attention import native
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.native import nystrom_attention_on_cpu
from nystromformer.attention.options import NystromOptions
from nystromformer.attention.softmax import softmax_attention

from .equations import attended, reference_nystrom

WIDTH = 16
WAYS = ("compiled", "operator", "composed")
MASKS = ("none", "right", "left", "scattered", "one token", "one row empty")

many = settings(
    max_examples=int(os.environ.get("NYSTROMFORMER_TEST_EXAMPLES", "25")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


class Case(dict):
    """Arguments of `nystrom_attention`, shown without their numbers."""

    def __repr__(self) -> str:
        shown = {name: tuple(x.shape) if isinstance(x, Tensor) else x for name, x in self.items()}
        mask = self["key_padding_mask"]
        return f"{shown}, real tokens {'all' if mask is None else (~mask).sum(dim=1).tolist()}"


@st.composite
def cases(draw, landmarks=(1, 8, 32, 64, 256), masks=MASKS, neighbours=(None, 1, 16, 24, 64)):
    """Queries, keys, values, mask, landmarks, kernel and neighbours."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    m = draw(st.sampled_from(landmarks))
    # Half of the lengths lie around the number of landmarks, where the branches meet.
    length = draw(st.one_of(st.integers(1, 700), st.integers(max(1, m - 3), m + 3)))
    rows, heads = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    neighbours = draw(st.sampled_from(neighbours))
    salient = draw(st.sampled_from((1, 7, 40)))
    # Nyström's approximation of sharp noise is ill-conditioned, and more so without its normalised factors.
    scale = draw(st.sampled_from((0.1, 1.0, 2.0) if neighbours is None else (0.1, 0.5, 1.0)))
    # Views of (batch, tokens, heads, width), as a model passes them.
    query, key, value = (torch.randn(rows, length, heads, WIDTH).transpose(1, 2) for _ in range(3))
    kernel = draw(st.sampled_from((None, 1, 5, 33)))
    mask = mask_of(draw(st.sampled_from(masks)), rows, length)
    if neighbours is not None and salient > 1:
        assume(chosen_clearly(scale * query, scale * key, mask, m, salient))
    return Case(
        query=scale * query,
        key=scale * key,
        value=value,
        num_landmarks=m,
        key_padding_mask=mask,
        conv_weight=None if kernel is None else torch.randn(heads, 1, kernel, 1) / kernel**0.5,
        neighbours=neighbours,
        salient_tokens=salient,
    )


def chosen_clearly(query: Tensor, key: Tensor, mask: Tensor | None, m: int, salient: int) -> bool:
    """Whether float32's rounding cannot make another token salient."""
    for row in range(len(query)):
        real = slice(None) if mask is None else ~mask[row]
        for head in range(query.shape[1]):
            query_nD, key_nD = (x[row, head][real].double() for x in (query, key))
            if len(query_nD) > max(m, salient):
                sums = attended(query_nD, key_nD, m)[1:].sort(descending=True).values
                if sums[salient - 2] - sums[salient - 1] < 1e-5 * sums[salient - 2]:
                    return False
    return True


def mask_of(kind: str, rows: int, length: int) -> Tensor | None:
    """True at padding. The first row is full, but for `one token`."""
    place, real = torch.arange(length), torch.randint(1, length + 1, (rows, 1))
    if kind == "none":
        return None
    if kind == "right":
        mask = place >= real
    elif kind == "left":
        mask = place < length - real
    elif kind == "one token":
        return place != torch.randint(0, length, (rows, 1))
    else:
        mask = torch.rand(rows, length) < torch.rand(rows, 1)
        mask[torch.arange(rows), torch.randint(0, length, (rows,))] = False
    mask[0] = False
    if kind == "one row empty":
        mask[rows - 1] = True
    return mask


@pytest.fixture(params=WAYS, scope="module")
def way(request):
    if request.param == "compiled" and native.library() is None:
        pytest.skip("the kernel cannot be compiled here: no g++ on Linux")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "operator":
            patch.setattr(native, "suits", lambda *_: False)
        yield request.param


def attention(way: str, case: dict) -> Tensor:
    if way == "compiled":
        return nystrom_attention(**case)
    names = ("num_landmarks", "neighbours", "salient_tokens")
    options = NystromOptions(**{name: case[name] for name in names})
    found = nystrom_attention_on_cpu if way == "operator" else composed_nystrom_attention
    tensors = (case["query"], case["key"], case["value"])
    return found(*tensors, options, case["key_padding_mask"], case["conv_weight"])


def reference(case: dict) -> Tensor:
    mask, query = case["key_padding_mask"], case["query"]
    padding = torch.zeros(len(query), query.shape[2], dtype=torch.bool) if mask is None else mask
    tensors = (case["query"], case["key"], case["value"])
    choices = {name: case[name] for name in ("neighbours", "salient_tokens")}
    return reference_nystrom(*tensors, padding, case["num_landmarks"], case["conv_weight"], **choices)


def close(out: Tensor, expected: Tensor, case: dict) -> None:
    """Within the tolerance of the expected values' own scale; NaN and infinities never are.

    With neighbours the far part is a difference, divided by a sum that may be small.
    """
    tolerance = 1e-5 if case["neighbours"] is None else 1e-4
    error, scale = (out - expected).abs().max(), expected.abs().max()
    if error > tolerance * scale and case["conv_weight"] is not None:
        # Attention and convolution may cancel: their sum is as exact as its larger summand.
        scale = reference({**case, "conv_weight": None}).abs().max()
    assert error <= tolerance * scale + 1e-30, f"{error:.2e} beside {scale:.2e}"


def row_of(case: dict, row: int) -> dict:
    """The same with one row alone."""
    mask = case["key_padding_mask"]
    new = {name: case[name][row : row + 1] for name in ("query", "key", "value")}
    return Case(case, **new, key_padding_mask=None if mask is None else mask[row : row + 1])


@many
@given(cases())
def test_equals_the_equations(way, case):
    close(attention(way, case), reference(case), case)


@many
@given(cases(), st.data())
def test_a_row_is_the_same_alone(way, case, data):
    row = data.draw(st.integers(0, len(case["query"]) - 1))
    close(attention(way, row_of(case, row))[0], attention(way, case)[row], case)


@many
@given(
    cases(masks=("none",)),
    st.integers(0, 300),
    st.integers(0, 300),
    st.sampled_from((0.0, 1e30, float("nan"), float("inf"))),
)
def test_padding_on_either_side_changes_nothing(way, case, before, after, garbage):
    n = case["query"].shape[2]

    def padded(x):
        return torch.nn.functional.pad(x, (0, 0, before, after), value=garbage)

    mask = torch.ones(len(case["query"]), before + n + after, dtype=torch.bool)
    mask[:, before : before + n] = False
    wide = {name: padded(case[name]) for name in ("query", "key", "value")}
    out = attention(way, {**case, **wide, "key_padding_mask": mask})
    assert out.isfinite().all()
    close(out[:, :, before : before + n], attention(way, case), case)


@many
@given(cases(landmarks=(1, 8, 32)))
def test_gradients_are_finite_and_stay_in_their_row(way, case):
    leaves = [case[name].requires_grad_() for name in ("query", "key", "value")]
    out = attention(way, case)
    for gradient in torch.autograd.grad(out[-1].square().sum(), leaves):
        assert gradient.isfinite().all()
        assert (gradient[:-1] == 0).all()
        if case["key_padding_mask"] is not None:
            pad_1N1 = case["key_padding_mask"][-1, None, :, None]
            assert (gradient[-1] * pad_1N1 == 0).all()


@many
@given(cases(landmarks=(64, 256)))
def test_at_most_m_real_tokens_is_exact_attention(way, case):
    mask, m = case["key_padding_mask"], case["num_landmarks"]
    n = case["query"].shape[2]
    if mask is None:
        mask = torch.zeros(len(case["query"]), n, dtype=torch.bool)
    mask = mask | ((~mask).cumsum(dim=1) > m)
    case = {**case, "key_padding_mask": mask, "conv_weight": None}
    exact = softmax_attention(
        *(case[name].double() for name in ("query", "key", "value")), key_padding_mask=mask
    )
    exact = exact.masked_fill(mask[:, None, :, None], 0)
    close(attention(way, case), exact, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@many
@given(cases(landmarks=(8, 64)))
def test_half_precision(autocast, dtype, case):
    names = ("query", "key", "value") if autocast else ("query", "key", "value", "conv_weight")
    half = {name: case[name].to(dtype) for name in names if case[name] is not None}
    case = {**case, **half}
    expected = reference(case)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = attention("compiled", case)
    assert out.dtype == dtype
    # Relative to the whole, in the Frobenius norm.
    assert (out - expected).norm() <= 2e-2 * expected.norm() + 1e-30


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(cases())
def test_many_cases_equal_the_equations(way, case):
    close(attention(way, case), reference(case), case)
    for row in range(len(case["query"])):
        close(attention(way, row_of(case, row))[0], attention(way, case)[row], case)
