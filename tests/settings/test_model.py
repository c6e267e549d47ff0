"""Settings of the model that are checked together."""

from __future__ import annotations

from nystromformer.settings import ModelSettings


def test_heads_that_do_not_divide_the_width_are_answered_by_those_that_do():
    def advice(width: int, heads: int) -> int:
        (line,) = ModelSettings(hidden_size=width, num_attention_heads=heads).complaints_together()
        return int(line.rsplit(" ", 1)[1])

    for width in range(3, 40):
        for heads in range(2, width):
            if width % heads:
                nearest = min(
                    (d for d in range(1, width + 1) if width % d == 0), key=lambda d: abs(d - heads)
                )
                assert advice(width, heads) == nearest
    assert advice(2**40, 7) == 8  # at once, not by trying every number
