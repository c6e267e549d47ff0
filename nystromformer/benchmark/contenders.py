"""Who is measured: each contender turns queries, keys and values into one attention output.

Shapes: B rows, H heads, N positions, D head width.

Projections are left out everywhere: a peer's module gets its own projected tensors in place of its linear
layers, in the memory layout that these would have written.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nystromformer.attention.mechanism import mechanism_of
from nystromformer.attention.nystrom import nystrom_attention
from nystromformer.model import NystromformerConfig
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.training import devices

OURS = "nystromformer"
NEAR = "nystromformer, exact neighbours"
PADDED = "nystromformer, last 25 % padding"
SCATTERED = "nystromformer, scattered 25 % padding"
TRANSFORMERS = "transformers"
LUCIDRAINS = "nystrom-attention"
COMPOSED = "nystromformer, composed of PyTorch's operators"
FUSED = "exact, fused"
FLASH = "exact, FlashAttention-2"
CUDNN = "exact, cuDNN"
EFFICIENT = "exact, memory-efficient"
STORED = "exact, matrix stored"
PEERS = (TRANSFORMERS, LUCIDRAINS)
EXACT_ON_GPU = {
    FLASH: SDPBackend.FLASH_ATTENTION,
    CUDNN: SDPBackend.CUDNN_ATTENTION,
    EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
}
"""PyTorch's fused kernels, each asked for alone; what it takes by itself is FUSED."""


@dataclass
class Contender:
    """One mechanism on one batch of inputs."""

    name: str
    leaves: list[Tensor]
    """Queries, keys and values, and the convolution's kernel: what gradients are taken of."""
    run: Callable[[], Tensor]
    """(B, N, H · D): what the output projection would read."""
    inputs: set[int] = field(init=False)
    """Addresses of the leaves' memory, which a backward pass may keep for nothing."""

    def __post_init__(self) -> None:
        self.inputs = {x.untyped_storage().data_ptr() for x in self.leaves}

    def train(self, seed: Tensor | None = None) -> None:
        """Forward and backward, from this gradient of the output or from ones."""
        out = self.run()
        torch.autograd.grad(out, self.leaves, torch.ones_like(out) if seed is None else seed)


class _Given(nn.Module):
    """A linear layer whose result is known already."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = (result,)  # a tuple, so that it is no parameter

    def forward(self, _: Tensor) -> Tensor:
        return self.result[0]


def contenders(settings: BenchmarkSettings, length: int, device: torch.device) -> list[Contender]:
    """All that can be measured at this length, on the same numbers."""
    dtype = getattr(torch, settings.dtype)
    rows = max(1, settings.tokens // length)
    generator = torch.Generator(device).manual_seed(settings.seed)
    shape = (3, rows, length, settings.heads * settings.head_dim)
    # Not laid out as (3, rows, …): each is a tensor of its own, as three linear layers would make it.
    projections = [
        x.clone() for x in torch.randn(shape, device=device, generator=generator).to(dtype).unbind()
    ]
    kernel = None
    if settings.kernel is not None:
        kernel = torch.randn(settings.heads, 1, settings.kernel, 1, device=device, generator=generator)
        kernel /= settings.kernel**0.5
    make = _Maker(settings, projections, kernel)
    way = settings.implementation
    found = [make.ours(OURS, way)]
    if settings.neighbours is not None:
        near = {"neighbours": settings.neighbours, "salient_tokens": settings.salient_tokens}
        found.append(make.ours(NEAR, way, **near))
    place = torch.arange(length, device=device).expand(rows, length)
    found.append(make.ours(PADDED, way, key_padding_mask=place >= length - length // 4))
    shuffled = torch.rand(rows, length, device=device, generator=generator).argsort(dim=1)
    found.append(make.ours(SCATTERED, way, key_padding_mask=shuffled < length // 4))
    found += [make.mechanism(attention, length) for attention in settings.mechanisms]
    found.append(make.transformers(length))
    found += make.lucidrains()
    found.append(make.on_heads(FUSED, F.scaled_dot_product_attention))
    if device.type == "cuda":
        if way != "composed":
            found.append(make.ours(COMPOSED, "composed"))
        for name, backend in EXACT_ON_GPU.items():
            contender = make.on_heads(name, sdpa_kernel(backend)(F.scaled_dot_product_attention))
            if _runs(contender):
                found.append(contender)
    if rows * settings.heads * length**2 * dtype.itemsize <= settings.largest_matrix * 1e9:
        found.append(make.on_heads(STORED, stored_attention))
    return found


def transformers_nystromformer() -> ModuleType:
    """Their classes; without what their import prints: that our configuration, which took the place of
    theirs, names no checkpoint."""
    with contextlib.redirect_stdout(io.StringIO()):
        from transformers.models.nystromformer import modeling_nystromformer
    return modeling_nystromformer


def stored_attention(query_BHND: Tensor, key_BHND: Tensor, value_BHND: Tensor) -> Tensor:
    """Exact attention as BERT computed it: scores and probabilities, (B, H, N, N) each, in memory."""
    scores_BHNN = (query_BHND * query_BHND.shape[-1] ** -0.5) @ key_BHND.mT
    return torch.softmax(scores_BHNN, dim=-1) @ value_BHND


def _runs(contender: Contender) -> bool:
    """Whether a fused kernel takes these inputs: not every one is in every build, or for every dtype."""
    try:
        contender.train()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"{contender.name} is left out: {str(error).splitlines()[0]}", flush=True)
        return False
    return True


@dataclass
class _Maker:
    settings: BenchmarkSettings
    projections: list[Tensor]
    kernel: Tensor | None

    def _leaves(self) -> list[Tensor]:
        """Fresh queries, keys and values, (B, N, H · D) each."""
        return [x.clone().requires_grad_() for x in self.projections]

    def on_heads(self, name: str, attend: Callable[..., Tensor], *parameters: Tensor) -> Contender:
        """What attends from queries to keys and values, (B, H, N, D) each, with its own parameters."""
        leaves = self._leaves()

        def run() -> Tensor:
            heads = (x_BNE.unflatten(-1, (self.settings.heads, -1)).transpose(1, 2) for x_BNE in leaves)
            return attend(*heads).transpose(1, 2).flatten(2)

        return Contender(name, [*leaves, *parameters], run)

    def ours(self, name: str, implementation: str | None, **choices: Any) -> Contender:
        """Nyström attention; choices as of `nystrom_attention`."""
        kernel = None if self.kernel is None else self.kernel.clone().requires_grad_()
        how = {"num_landmarks": self.settings.landmarks, "implementation": implementation, **choices}
        attend = partial(nystrom_attention, conv_weight=kernel, **how)
        return self.on_heads(name, attend, *([] if kernel is None else [kernel]))

    def mechanism(self, attention: str, length: int) -> Contender:
        """A mechanism of the registry, as a model of this length has it where nothing is written."""
        config = NystromformerConfig(
            hidden_size=self.settings.heads * self.settings.head_dim,
            num_attention_heads=self.settings.heads,
            max_position_embeddings=length,
            attention=attention,
            attention_probs_dropout_prob=0.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            module = mechanism_of(attention).of(config).to(self.projections[0])
        return self.on_heads(f"nystromformer, {attention}", module, *module.parameters())

    def transformers(self, length: int) -> Contender:
        leaves, theirs = self._leaves(), transformers_nystromformer()
        config = theirs.NystromformerConfig(
            hidden_size=self.settings.heads * self.settings.head_dim,
            num_attention_heads=self.settings.heads,
            num_landmarks=self.settings.landmarks,
            segment_means_seq_len=length,
            conv_kernel_size=self.settings.kernel,
        )
        module = theirs.NystromformerSelfAttention(config).to(leaves[0].device)
        module.query, module.key, module.value = map(_Given, leaves)
        if self.kernel is not None:
            module.conv.weight = nn.Parameter(self.kernel.clone())
        autocast = self._autocast_of_peers()

        def run() -> Tensor:
            with autocast:
                return module(leaves[0])[0]

        return Contender(TRANSFORMERS, leaves + list(module.parameters()), run)

    def lucidrains(self) -> list[Contender]:
        try:
            from nystrom_attention import NystromAttention
        except ImportError:
            return []
        leaves = self._leaves()
        joined = torch.cat(leaves, dim=-1).detach().requires_grad_()
        module = NystromAttention(
            dim=self.settings.heads * self.settings.head_dim,
            dim_head=self.settings.head_dim,
            heads=self.settings.heads,
            num_landmarks=self.settings.landmarks,
            residual=self.kernel is not None,
            residual_conv_kernel=self.settings.kernel or 1,
        ).to(joined.device)
        module.to_qkv, module.to_out = _Given(joined), nn.Identity()
        if self.kernel is not None:
            module.res_conv.weight = nn.Parameter(self.kernel.clone())
        autocast = self._autocast_of_peers()
        hidden = leaves[0].detach()

        def run() -> Tensor:
            with autocast:
                return module(hidden)

        return [Contender(LUCIDRAINS, [joined, *module.parameters()], run)]

    def _autocast_of_peers(self) -> torch.autocast:
        """Pure half precision crashes both."""
        warnings.filterwarnings("ignore", message=".*autocast.*")
        return devices.autocast(self.projections[0].dtype, self.projections[0].device)
