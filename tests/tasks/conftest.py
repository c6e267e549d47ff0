"""A tiny random checkpoint, and tasks in GLUE's layout that it can learn in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.tasks import parts
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.kinds.sequence import SequenceTask as Task

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FILLERS = [
    "the",
    "a",
    "film",
    "plot",
    "actor",
    "scene",
    "story",
    "was",
    "is",
    "and",
    "of",
    "in",
    "one",
    "very",
]
PLANTED = ["awful", "great", "plain"]
"""The word that tells the label of a planted example, by label id."""
CHARACTERS = list("abcdefghijklmnopqrstuvwxyz0123456789'-")


def make_checkpoint(folder: Path, **changes) -> Path:
    """A random Nyströmformer of 2 layers of 32 with a WordPiece vocabulary of its own."""
    words = [*SPECIAL, *FILLERS, *PLANTED, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer()
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    torch.manual_seed(0)
    shape = {
        "vocab_size": -(-len(vocabulary) // 64) * 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "num_landmarks": 8, "conv_kernel_size": 3,
        "max_position_embeddings": 48,
        "initializer_range": 0.15,  # with BERT's 0.02, so narrow a model hardly moves in a test's few steps
    }  # fmt: skip
    NystromformerForPreTraining(NystromformerConfig(**{**shape, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


def planted(label: int, draw: random.Random, *, words: int = 6) -> str:
    """A text of which one word tells the label."""
    text = draw.choices(FILLERS, k=words)
    text.insert(draw.randrange(len(text)), PLANTED[label])
    return " ".join(text)


def write_glue(root: Path, task: Task, *, train: int = 24, dev: int = 12, test: int = 0) -> Path:
    """A task's folder in GLUE's layout, its label planted in the last text."""
    draw = random.Random(5)
    folder = root / task.folder
    folder.mkdir(parents=True, exist_ok=True)

    def rows(count: int, *, labelled: bool) -> str:
        columns = list(task.headless) or ["index", "n/a", *task.texts, task.label]
        if not labelled:
            columns = ["index", *task.texts]
        lines = [] if task.headless and labelled else ["\t".join(columns)]
        for number in range(count):
            label = number % (task.num_labels if not task.regression else 3)
            value = str(2.5 * label) if task.regression else task.values[label]
            cells = {"index": str(number), task.label: value, task.texts[-1]: planted(label, draw)}
            if len(task.texts) == 2:
                cells[task.texts[0]] = " ".join(draw.choices(FILLERS, k=4)) + ' "'
            lines.append("\t".join(cells.get(column, "n/a") for column in columns))
        return "\n".join(lines) + "\n"

    # MRPC's own files begin with a byte-order mark.
    encoding = "utf-8-sig" if task.name == "mrpc" else "utf-8"
    (folder / "train.tsv").write_text(rows(train, labelled=True), encoding=encoding)
    for _, name in task.dev_files:
        (folder / name).write_text(rows(dev, labelled=True), encoding=encoding)
    for _, name in task.test_files if test else ():
        (folder / name).write_text(rows(test, labelled=False))
    if test and task.name == "mnli":
        (root / "diagnostic").mkdir(exist_ok=True)
        (root / "diagnostic/diagnostic.tsv").write_text(rows(test, labelled=False))
    return root


@pytest.fixture(scope="session")
def glue(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("glue")
    for task in TASKS.values():
        if task.is_glue:
            write_glue(root, task, test=5)
    return root


@pytest.fixture
def words(checkpoint, tmp_path) -> Callable[..., list[str]]:
    """The words of a tiny run, to which a test adds its own."""

    def make(*more: str) -> list[str]:
        return [
            "finetune", f"checkpoint={checkpoint}", f"runs_folder={tmp_path / 'runs'}", "task.epochs=1",
            "task.batch_sizes=[8]", "task.learning_rates=[1e-3]", "training.precision=float32", *more,
        ]  # fmt: skip

    return make


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of seven rows."""
    monkeypatch.setattr(parts, "MOST_ROWS", 7)


def text_of(draw: random.Random, *words: str, length: int = 6) -> str:
    found = [*draw.choices(FILLERS, k=length), *words]
    draw.shuffle(found)
    return " ".join(found)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Queries of ten topics, each with a word that its passages have in another; wrong passages."""
    draw, path = random.Random(1), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "query": f"{draw.choice(FILLERS)} {CHARACTERS[n % 10]}",
            "passage": text_of(draw, CHARACTERS[10 + n % 10], length=draw.randint(4, 20)),
            "wrong": [text_of(draw, CHARACTERS[10 + (n + k) % 10]) for k in range(1, 2 + n % 2)],
        }
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
