"""Settings of `nystromformer reproduce`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

SCALES = ("paper", "sample", "smoke")
FIGURES = ("longer",)
TABLES = ("starts", "warmstart")
SAMPLE_ONLY = frozenset({"starts", "warmstart"})
"""Results about the BERT of the samples: there is no larger scale of them."""


@dataclass
class ReproduceSettings:
    """One result, written as JSON, Markdown and, where it helps, PNG."""

    figure: str | None = None
    """`longer`: MLM and sentence-order accuracy before and after the extension to twice the length, on the
    same held-out documents (supplement, figure 5)."""
    table: str | None = None
    """`starts`: how far a Nyströmformer is from the BERT it starts from, by kernel, landmarks and fit.
    `warmstart`: that BERT trained on film reviews with Nyström attention and with exact attention."""
    scale: str = "paper"
    """`paper`: the published runs, days on several GPUs. `sample`: the same on film reviews, on a CPU,
    minutes to an hour. `smoke`: seconds, to see that everything works; its figures mean nothing."""
    folder: str = "reproduced"
    """Where `NAME.json`, `.md` and `.png` go."""
    runs_folder: str = "runs"
    """Where the runs behind a result are; a finished run is read, an unfinished one resumed."""
    prepared_folder: str = "prepared"
    overrides: list[str] = field(default_factory=list)
    """More words for the runs behind a result, e.g. overrides=["data.workers=1"]."""

    @property
    def result(self) -> str:
        """The name of the table or figure."""
        return str(self.figure or self.table)

    def complaints(self) -> Iterator[str]:
        if (self.figure is None) == (self.table is None):
            yield (
                f"write one of figure={'|'.join(FIGURES)} and table={'|'.join(TABLES)}: one result at a time"
            )
        for name, known in (("figure", FIGURES), ("table", TABLES), ("scale", SCALES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                yield f"{name}={value!r} is unknown: write one of {', '.join(known)}"
        if self.result in SAMPLE_ONLY and self.scale == "paper":
            yield f"{self.result} is not of the paper: write scale=sample or scale=smoke"
        for name in ("folder", "runs_folder", "prepared_folder"):
            if not getattr(self, name):
                yield f"{name} is empty: write a folder"
