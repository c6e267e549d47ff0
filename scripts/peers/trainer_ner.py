"""Named entities by transformers alone: its BERT, its Trainer, its example's recipe; beside `task=ner` here.

    python scripts/peers/trainer_ner.py checkpoint=FOLDER train=FILE dev=FILE rate=1e-4 epochs=3 batch=32

Files are CoNLL columns; parts=2 computes a batch in two, where the memory is short. Prints strict F1 of spans
and accuracy of words on the held-out file after the last epoch, as seqeval counts them, and the seconds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

IGNORED = -100


def sentences_of(path: str) -> list[list[tuple[str, str]]]:
    """(word, tag) of each sentence."""
    parts = Path(path).read_text(encoding="utf-8").split("\n\n")
    rows = [[line.split("\t") for line in part.splitlines() if line.strip()] for part in parts]
    return [[(cells[0], cells[-1]) for cells in row] for row in rows if row]


def main(options: dict[str, str]) -> None:
    train, dev = sentences_of(options["train"]), sentences_of(options["dev"])
    tags = sorted({tag for sentence in train for _, tag in sentence})
    ids = {tag: number for number, tag in enumerate(tags)}
    tokenizer = AutoTokenizer.from_pretrained(options["checkpoint"])

    def rows_of(sentences: list[list[tuple[str, str]]]) -> list[dict[str, list[int]]]:
        found = []
        for sentence in sentences:
            row = tokenizer([word for word, _ in sentence], is_split_into_words=True, truncation=True)
            words, labels = row.word_ids(), []
            for place, word in enumerate(words):
                first = word is not None and (place == 0 or words[place - 1] != word)
                labels.append(ids[sentence[word][1]] if first else IGNORED)
            found.append({**row, "labels": labels})
        return found

    seed = int(options.get("seed", "0"))
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(options["checkpoint"], num_labels=len(tags))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            learning_rate=float(options["rate"]),
            num_train_epochs=float(options["epochs"]),
            per_device_train_batch_size=int(options["batch"]) // int(options.get("parts", "1")),
            gradient_accumulation_steps=int(options.get("parts", "1")),
            per_device_eval_batch_size=64,
            warmup_steps=0.05,  # a share of all steps
            weight_decay=0.01,
            adam_epsilon=1e-6,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=rows_of(train),
            data_collator=DataCollatorForTokenClassification(tokenizer),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        predictions, labels, _ = trainer.predict(rows_of(dev))
    kept = [
        (p[row != IGNORED], row[row != IGNORED])
        for p, row in zip(predictions.argmax(-1), labels, strict=True)
    ]
    found = [[tags[number] for number in row] for row, _ in kept]
    truth = [[tags[number] for number in row] for _, row in kept]
    _, _, f1, _ = precision_recall_fscore_support(truth, found, scheme=IOB2, average="micro", zero_division=0)
    pairs = [pair for a, b in zip(truth, found, strict=True) for pair in zip(a, b, strict=True)]
    accuracy = sum(one == other for one, other in pairs) / len(pairs)
    print(f"f1 {f1:.4f}  accuracy {accuracy:.4f}  {seconds:.0f} s of training")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
