"""What a layer asks of an attention mechanism; `nystromformer/mechanisms.py` lists them.

Shapes: B rows, H heads, N positions, n real tokens of a row, D head width, M landmarks.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nystromformer.attention.projections import check_projections, without_padding, zero_at_padding
from nystromformer.mechanisms import MECHANISMS


class Mechanism(nn.Module):
    """An attention mechanism, (B, H, N, D) three times → (B, H, N, D). A subclass says how it is made of a
    model's configuration (`of`), computes (`attended`) and counts (`flops`); the rest has a default.

    The layer holds it under the mechanism's name, so that its parameter `weight` is saved as `….NAME.weight`.
    """

    fixed_length: ClassVar[bool] = False
    """Whether an export serves the length alone that it was made with."""
    convolves: ClassVar[bool] = False
    """Whether it adds the residual convolution itself: `forward` then takes `conv_weight` and `shared`."""
    implementation: str | None = None
    """How the same is computed, which is no part of a configuration; for those that have a choice."""
    in_transformers: ClassVar[bool] = False
    """Whether transformers' own Nystromformer has it, at a length of its own choice."""

    @classmethod
    def of(cls, config: Any) -> Mechanism:
        """The mechanism of one layer of a `NystromformerConfig`."""
        raise NotImplementedError

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """Attention: `attended` between zeros at padding.

        Args:
            query, key, value: (B, H, N, D).
            key_padding_mask: (B, N) bool, True at padding.

        Returns:
            (B, H, N, D), 0 at padded positions.

        Raises:
            ValueError: a shape or dtype is impossible.
        """
        check_projections(query, key, value, key_padding_mask)
        tensors = without_padding(query, key, value, key_padding_mask)
        return zero_at_padding(self.attended(*tensors, key_padding_mask), key_padding_mask)

    def attended(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """The same of tensors that fit together and are 0 at padding, where the output means nothing."""
        raise NotImplementedError

    @staticmethod
    def flops(config: Any, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Operations of one layer's forward pass, (rows,), for rows of so many real tokens; a multiplication
        with its addition counts as 2. Projections and the residual convolution are counted elsewhere."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw the mechanism's own parameters and buffers anew; nested modules are drawn as any."""

    def is_exact(self, tokens: int) -> bool:
        """Whether a row of so many real tokens gets exact softmax attention."""
        return False

    def shared(self, key_padding_mask: Tensor | None) -> Any:
        """What all layers share about a batch's padding: computed by the first layer, given to each."""
        return None

    def approximation(self, tokens: int) -> dict[str, Any] | None:
        """Options with which `diagnostics.attention_error` measures it on rows of so many tokens; None where
        it forms no approximation of the softmax matrix by landmarks."""
        return None

    def described(self, query_BHND: Tensor) -> str | None:
        """What computes such a call, for people; None for PyTorch's operators. The tensor is read for its
        shape, dtype and device alone."""
        return None


def mechanism_of(attention: str) -> type[Mechanism]:
    """The class that MECHANISMS names."""
    module, _, name = MECHANISMS[attention].partition(":")
    found: type[Mechanism] = getattr(import_module(module), name)
    return found


def exact_flops(config: Any, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of exact attention: Q Kᵀ and A V."""
    return 4 * tokens**2 * config.hidden_size
