"""Which implementation of Nyström attention takes a call, and what is said of those that cannot."""

import pytest
import torch

from nystromformer import nystrom_attention
from nystromformer.attention import native
from nystromformer.attention.composed import composed_nystrom_attention
from nystromformer.attention.gpu.support import shared_memory, shared_memory_needed, why_not_on_gpu
from nystromformer.attention.options import NystromOptions


def test_what_the_kernels_cannot_do_is_said(monkeypatch):
    from nystromformer.attention.gpu import support

    monkeypatch.setattr(support, "INTERPRETED", True)
    monkeypatch.setattr(support, "find_spec", lambda name: object())
    query = torch.randn(1, 1, 80, 16)
    assert why_not_on_gpu(query, 16) is None
    assert "float64" in why_not_on_gpu(query.double(), 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which converts any type but float64
        assert "float64" in why_not_on_gpu(query.double(), 16)
    assert "entries a row" in why_not_on_gpu(query.expand(1, 2**21, 80, 16), 16)
    assert "exact" in why_not_on_gpu(query, 80)
    assert "257 landmarks" in why_not_on_gpu(torch.randn(1, 1, 300, 16), 257)
    assert "shared memory" in why_not_on_gpu(torch.randn(1, 1, 300, 128), 256)
    assert "width 129" in why_not_on_gpu(torch.randn(1, 1, 80, 129), 16)
    monkeypatch.setattr(support, "INTERPRETED", False)
    assert "on a CPU" in why_not_on_gpu(query, 16)
    assert "meta" in why_not_on_gpu(query.to("meta"), 16)
    monkeypatch.setattr(support, "HAS_TRITON", False)
    assert "not installed" in why_not_on_gpu(query, 16)


def test_gpus_of_less_shared_memory_take_less():
    a100, rtx_4090, t4 = (shared_memory(capability) for capability in ((8, 0), (8, 9), (7, 5)))
    assert t4 == 0
    assert rtx_4090 >= shared_memory_needed(torch.bfloat16, 64, 64)
    assert rtx_4090 < shared_memory_needed(torch.float16, 64, 64) <= a100
    assert a100 < shared_memory_needed(torch.float32, 64, 64) <= shared_memory((9, 0))
    assert shared_memory_needed(torch.float32, 128, 64) is None


@pytest.mark.skipif(native.library() is None, reason="no g++ on Linux to compile the kernel")
def test_the_way_can_be_chosen(monkeypatch):
    torch.manual_seed(11)
    query, key, value = torch.randn(3, 1, 2, 30, 16)
    ways = {
        way: nystrom_attention(query, key, value, num_landmarks=16, implementation=way)
        for way in ("operator", "composed", "auto")
    }
    assert torch.equal(ways["composed"], composed_nystrom_attention(query, key, value, NystromOptions(16)))
    assert torch.equal(ways["operator"], ways["auto"])
    monkeypatch.setattr("nystromformer.attention.nystrom.DEFAULT_IMPLEMENTATION", "auto")
    assert torch.equal(nystrom_attention(query, key, value, num_landmarks=16), ways["auto"])
    monkeypatch.setattr("nystromformer.attention.nystrom.DEFAULT_IMPLEMENTATION", "composed")
    assert torch.equal(nystrom_attention(query, key, value, num_landmarks=16), ways["composed"])
    with pytest.raises(ValueError, match="'operator' cannot compute this: it has the iterative inverse only"):
        nystrom_attention(query, key, value, pinv_iterations=None, implementation="operator")
    with pytest.raises(ValueError, match="'operator' cannot compute this: its kernel takes float32 and"):
        nystrom_attention(query, key, value, num_landmarks=7, implementation="operator")
    with pytest.raises(ValueError, match="'fast' is unknown: use one of auto, operator, composed"):
        nystrom_attention(query, key, value, implementation="fast")
