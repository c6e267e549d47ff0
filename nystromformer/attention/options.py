"""The options of Nyström attention, checked once and handed on as one."""

from __future__ import annotations

from dataclasses import dataclass

LANDMARKS = ("segment_means", "uniform", "kmeans")


@dataclass(frozen=True)
class NystromOptions:
    """The options of `nystrom_attention`, see there.

    Raises:
        ValueError: an option is impossible.
    """

    num_landmarks: int = 64
    pinv_iterations: int | None = 6
    landmarks: str = "segment_means"
    landmark_seed: int = 0
    neighbours: int | None = None
    salient_tokens: int = 1

    def __post_init__(self) -> None:
        for name, instead in (
            ("num_landmarks", ""),
            ("pinv_iterations", ", or None for the exact inverse"),
            ("neighbours", ", or None for landmarks alone"),
            ("salient_tokens", ", the row's first token"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: use at least 1{instead}")
        if self.landmarks not in LANDMARKS:
            raise ValueError(f"landmarks={self.landmarks!r} is unknown: use one of {', '.join(LANDMARKS)}")

    @property
    def most_exact(self) -> int:
        """Rows of at most so many real tokens get exact attention."""
        return max(self.num_landmarks, 2 * (self.neighbours or 0))
