"""Who is measured: each contender turns queries, keys and values into one attention output.

Shapes: B rows, H heads, N positions, D head width.

Projections are left out everywhere: a peer's module gets its own projected tensors in place of its linear
layers, in the memory layout that these would have written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nystromformer.attention.mechanism import mechanism_of
from nystromformer.attention.nystrom import nystrom_attention
from nystromformer.model import NystromformerConfig
from nystromformer.settings.benchmark import BenchmarkSettings

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
    found = [make.ours(OURS, None, way)]
    if settings.neighbours is not None:
        found.append(make.ours(NEAR, None, way, settings.neighbours, settings.salient_tokens))
    place = torch.arange(length, device=device).expand(rows, length)
    found.append(make.ours(PADDED, place >= length - length // 4, way))
    shuffled = torch.rand(rows, length, device=device, generator=generator).argsort(dim=1)
    found.append(make.ours(SCATTERED, shuffled < length // 4, way))
    found += [make.mechanism(attention, length) for attention in settings.mechanisms]
    found.append(make.transformers(length))
    found += make.lucidrains()
    found.append(make.fused(FUSED, nullcontext))
    if device.type == "cuda":
        if way != "composed":
            found.append(make.ours(COMPOSED, None, "composed"))
        for name, backend in EXACT_ON_GPU.items():
            contender = make.fused(name, partial(sdpa_kernel, backend))
            if _runs(contender):
                found.append(contender)
    if rows * settings.heads * length**2 * dtype.itemsize <= settings.largest_matrix * 1e9:
        found.append(make.stored())
    return found


def _runs(contender: Contender) -> bool:
    """Whether a fused kernel takes these inputs: not every one is in every build, or for every dtype."""
    try:
        out = contender.run()
        torch.autograd.grad(out, contender.leaves, torch.ones_like(out))
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

    def _leaves(self) -> tuple[list[Tensor], Tensor | None]:
        """Fresh leaves: three (B, N, H · D), and the kernel."""
        kernel = None if self.kernel is None else self.kernel.clone().requires_grad_()
        return [x.clone().requires_grad_() for x in self.projections], kernel

    def _heads(self, x_BNE: Tensor) -> Tensor:
        return x_BNE.unflatten(-1, (self.settings.heads, -1)).transpose(1, 2)

    def ours(
        self,
        name: str,
        mask: Tensor | None,
        implementation: str | None = None,
        neighbours: int | None = None,
        salient_tokens: int = 1,
    ) -> Contender:
        leaves, kernel = self._leaves()

        def run() -> Tensor:
            out_BHND = nystrom_attention(
                *map(self._heads, leaves),
                num_landmarks=self.settings.landmarks,
                conv_weight=kernel,
                key_padding_mask=mask,
                neighbours=neighbours,
                salient_tokens=salient_tokens,
                implementation=implementation,
            )
            return out_BHND.transpose(1, 2).flatten(2)

        return Contender(name, leaves + ([] if kernel is None else [kernel]), run)

    def mechanism(self, attention: str, length: int) -> Contender:
        """A mechanism of the registry, as a model of this length has it where nothing is written."""
        leaves, _ = self._leaves()
        config = NystromformerConfig(
            hidden_size=self.settings.heads * self.settings.head_dim,
            num_attention_heads=self.settings.heads,
            max_position_embeddings=length,
            attention=attention,
            attention_probs_dropout_prob=0.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            module = mechanism_of(attention).of(config).to(leaves[0].device, leaves[0].dtype)

        def run() -> Tensor:
            return module(*map(self._heads, leaves)).transpose(1, 2).flatten(2)

        return Contender(f"nystromformer, {attention}", [*leaves, *module.parameters()], run)

    def transformers(self, length: int) -> Contender:
        from transformers.models.nystromformer import NystromformerConfig as TheirConfig
        from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

        leaves, kernel = self._leaves()
        config = TheirConfig(
            hidden_size=self.settings.heads * self.settings.head_dim,
            num_attention_heads=self.settings.heads,
            num_landmarks=self.settings.landmarks,
            segment_means_seq_len=length,
            conv_kernel_size=self.settings.kernel,
        )
        module = NystromformerSelfAttention(config).to(leaves[0].device)
        module.query, module.key, module.value = map(_Given, leaves)
        if kernel is not None:
            module.conv.weight = nn.Parameter(kernel.detach())
        autocast = self._autocast_of_peers()

        def run() -> Tensor:
            with autocast():
                return module(leaves[0])[0]

        return Contender(TRANSFORMERS, leaves + list(module.parameters()), run)

    def lucidrains(self) -> list[Contender]:
        try:
            from nystrom_attention import NystromAttention
        except ImportError:
            return []
        leaves, kernel = self._leaves()
        joined = torch.cat(leaves, dim=-1).detach().requires_grad_()
        module = NystromAttention(
            dim=self.settings.heads * self.settings.head_dim,
            dim_head=self.settings.head_dim,
            heads=self.settings.heads,
            num_landmarks=self.settings.landmarks,
            residual=kernel is not None,
            residual_conv_kernel=self.settings.kernel or 1,
        ).to(joined.device)
        module.to_qkv, module.to_out = _Given(joined), nn.Identity()
        if kernel is not None:
            module.res_conv.weight = nn.Parameter(kernel.detach())
        autocast = self._autocast_of_peers()
        hidden = leaves[0].detach()

        def run() -> Tensor:
            with autocast():
                return module(hidden)

        return [Contender(LUCIDRAINS, [joined, *module.parameters()], run)]

    def fused(self, name: str, backend: Callable[[], AbstractContextManager]) -> Contender:
        leaves, _ = self._leaves()

        def run() -> Tensor:
            with backend():
                query, key, value = (self._heads(leaf) for leaf in leaves)
                out_BHND = F.scaled_dot_product_attention(query, key, value)
            return out_BHND.transpose(1, 2).flatten(2)

        return Contender(name, leaves, run)

    def stored(self) -> Contender:
        leaves, _ = self._leaves()

        def run() -> Tensor:
            query, key, value = map(self._heads, leaves)
            scores = (query * query.shape[-1] ** -0.5) @ key.mT
            return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)

        return Contender(STORED, leaves, run)

    def _autocast_of_peers(self) -> Callable[[], AbstractContextManager]:
        """Pure half precision crashes both."""
        dtype, device = self.projections[0].dtype, self.projections[0].device.type
        if dtype == torch.float32:
            return nullcontext
        warnings.filterwarnings("ignore", message=".*autocast.*")
        return lambda: torch.autocast(device, dtype=dtype)
