"""A preparation under way: the folder it fills, and which blocks of the corpus are whole in it.

    prepared/.unfinished-imdb-1f0c9a6be2d4/
      tokenizer/                complete or absent, as every file here
      train/00003.arrow         the training chunks of block 3
      validation/00003.arrow    its validation chunks
      .state/blocks/00003.json  written last: block 3 is whole, and these are its counts
      .state/corpus.json        how many blocks there are, once somebody has read the corpus to its end
      .state/survey.json        see `survey`
      .state/shard-2-of-4       one of four machines has worked here

A preparation that is killed leaves this folder; the same command finds the blocks that are whole and makes
the others. Several machines can fill one folder: each file comes into its place by a rename.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nystromformer.data import storage
from nystromformer.data.documents import SPLITS, SplitRule, validation_below
from nystromformer.data.reading import Batch, Blocks, DocumentProgress, ReadCounts, Survey, survey
from nystromformer.data.segmentation import Chunks, Counts, Segmentation
from nystromformer.data.storage import ShardInfo, replacing, token_type, write_shard
from nystromformer.data.workers import Processed, Work, ordered_map, process_batch, start_worker
from nystromformer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nystromformer.data.plan import Plan


PREFIX = ".unfinished-"
_STATE = ".state"
DOCUMENT_SIZES = 24
"""Documents are counted by length: class k has 2^k to 2^(k+1) - 1 tokens, class 0 also none."""


@dataclass
class Block:
    """What is known of one whole block."""

    number: int
    shards: dict[str, ShardInfo | None]
    counts: dict[str, Counts]
    read: list[ReadCounts]
    first_document: dict[str, int | None]
    """The hash of each split's first document that gave a chunk."""
    document_sizes: list[int] = field(default_factory=lambda: [0] * DOCUMENT_SIZES)
    """Documents of each size, see DOCUMENT_SIZES."""
    moved: int | None = None
    """The document that was sent to the other split here, see SplitRule."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Block:
        shards = {split: ShardInfo(**shard) if shard else None for split, shard in content["shards"].items()}
        counts = {split: Counts(**counted) for split, counted in content["counts"].items()}
        read = [ReadCounts(**counted) for counted in content["read"]]
        return cls(**(content | {"shards": shards, "counts": counts, "read": read}))


class BlockWriter:
    """Collects the results of a block's batches, in order, and writes the block at its last."""

    def __init__(self, folder: UnfinishedFolder, vocab_size: int, moved: int | None = None) -> None:
        self._folder = folder
        self._dtype = token_type(vocab_size)
        self._moved = moved
        self._results: list[Processed] = []

    def add(self, result: Processed) -> Block | None:
        """The block, if this result was its last."""
        self._results.append(result)
        if not result.ends_block:
            return None
        results, self._results = self._results, []
        block = Block(
            result.block,
            {split: self._write(split, result.block, results) for split in SPLITS},
            {split: Counts() for split in SPLITS},
            [ReadCounts() for _ in result.read],
            dict.fromkeys(SPLITS),
            moved=self._moved,
        )
        for part in results:
            for split in SPLITS:
                block.counts[split].add(part.counts[split])
                if block.first_document[split] is None:
                    block.first_document[split] = part.first_document[split]
            for total, counted in zip(block.read, part.read, strict=True):
                total.add(counted)
        tokens = np.concatenate([part.document_tokens for part in results])
        size_class = np.minimum(np.log2(np.maximum(tokens, 1)).astype(np.int64), DOCUMENT_SIZES - 1)
        block.document_sizes = np.bincount(size_class, minlength=DOCUMENT_SIZES).tolist()
        self._folder.write_json(f"blocks/{block.number:05d}.json", asdict(block))
        return block

    def _write(self, split: str, number: int, results: list[Processed]) -> ShardInfo | None:
        chunks = Chunks.concatenate([result.chunks[split] for result in results])
        if not len(chunks):
            return None
        return write_shard(self._folder.path, f"{split}/{number:05d}.arrow", chunks, self._dtype)


@dataclass(frozen=True)
class UnfinishedFolder:
    """The folder, by path; it need not exist."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> UnfinishedFolder:
        """The one that will become `folder`."""
        return cls(folder.with_name(PREFIX + folder.name))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder; a disk that is full or read-only becomes one line, and what is whole stays."""
        try:
            (self.path / _STATE / "blocks").mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror or error}): free space there and give the "
                "same command again, which goes on from the last whole shard, or write data.folder=FOLDER "
                "with a folder on another disk"
            ) from error

    def write_json(self, name: str, content: object) -> None:
        with replacing(self.path / _STATE / name) as file:
            file.write(json.dumps(content).encode())

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / _STATE / name).read_bytes())
        except FileNotFoundError:
            return None

    def blocks(self) -> dict[int, Block]:
        """The whole blocks by number; one whose files are no longer there in full size is none."""
        found = {}
        for path in sorted((self.path / _STATE / "blocks").glob("[0-9]*.json")):
            block = Block.from_json(json.loads(path.read_bytes()))
            shards = [shard for shard in block.shards.values() if shard]
            if all(_size(self.path / shard.file) == shard.bytes for shard in shards):
                found[block.number] = block
        return found

    def block_count(self) -> int | None:
        """How many blocks the corpus has, if that is known."""
        content = self._read_json("corpus.json")
        return None if content is None else int(content["blocks"])

    def set_block_count(self, count: int) -> None:
        self.write_json("corpus.json", {"blocks": count})

    def survey(self) -> Survey | None:
        content = self._read_json("survey.json")
        return None if content is None else Survey(**content)

    def set_survey(self, found: Survey) -> None:
        self.write_json("survey.json", asdict(found))

    def announce_shard(self, number: int, of: int) -> None:
        """Leave a mark for the merge, which tells from it who is missing."""
        (self.path / _STATE / f"shard-{number}-of-{of}").touch()

    def machines(self) -> int | None:
        """Of how many machines the shards were, if they were of several."""
        marks = [path.name for path in (self.path / _STATE).glob("shard-*-of-*")]
        return max((int(mark.rpartition("-")[2]) for mark in marks), default=None)

    def keep_only(self, files: set[str]) -> None:
        """Remove everything but `files`, which are relative to the folder."""
        shutil.rmtree(self.path / _STATE, ignore_errors=True)
        for path in sorted(self.path.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(self.path).as_posix() not in files:
                path.unlink()

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


# --- the long steps -------------------------------------------------------------------------------------


def make_blocks(
    job: Plan,
    folder: UnfinishedFolder,
    tokenizer: PreTrainedTokenizerFast,
    wanted: Callable[[int], bool],
    *,
    rule: SplitRule,
    show_progress: bool,
) -> tuple[list[Block], int]:
    """Read the corpus, write its `wanted` blocks into `folder`; return them and the number of all blocks."""
    from nystromformer.data.tokenizer import plain_backend

    settings = job.settings
    segmentation = Segmentation(settings.max_length, settings.data.short_sequence_probability, settings.seed)
    work = Work(plain_backend(tokenizer), segmentation, settings.data.language, rule)
    blocks = Blocks(job.corpus, settings.data.shard_megabytes * 1e6)
    writer = BlockWriter(folder, len(tokenizer), rule.moved)
    surveyed = folder.survey()
    total = surveyed.bytes if surveyed else job.corpus.total_bytes
    made = []
    with DocumentProgress("preparing", total_bytes=total, show=show_progress) as progress:

        def batches() -> Iterator[Batch]:
            for batch in blocks:
                if wanted(batch.block):
                    yield batch
                else:
                    progress.passed(sum(counts.bytes for counts in batch.read))

        for result in ordered_map(
            process_batch,
            batches(),
            workers=settings.data.workers,
            initializer=start_worker,
            initargs=(work,),
        ):
            if result.ends_block:
                job.inputs.complain_if_changed()  # before the block is written: what is there is right
            if block := writer.add(result):
                made.append(block)
            progress.advance(
                sum(counts.documents for counts in result.read),
                sum(counts.bytes for counts in result.read),
                int(result.document_tokens.sum()),
            )
    assert blocks.count is not None  # the corpus was read to its end
    return made, blocks.count


def make_tokenizer(job: Plan, folder: UnfinishedFolder, show_progress: bool) -> PreTrainedTokenizerFast:
    """The tokenizer in the unfinished folder, put there if missing; and the survey, if needed."""
    from nystromformer.data.tokenizer import load_tokenizer

    path = folder.path / storage.TOKENIZER
    needs_survey = job.settings.data.validation_documents is not None and folder.survey() is None
    if not path.exists() or needs_survey:
        train = job.given_tokenizer is None
        sample: list[str] = []
        if train or needs_survey:
            found, sample = survey(job.corpus, job.settings, sample=train, show_progress=show_progress)
            job.inputs.complain_if_changed()
            folder.set_survey(found)
        if not path.exists():
            tokenizer = job.given_tokenizer
            if tokenizer is None:
                from nystromformer.data.tokenizer import train_tokenizer

                tokenizer = train_tokenizer(
                    sample, job.settings.tokenizer, max_length=job.settings.max_length
                )
            # Saved under another name first: a tokenizer that is there is whole.
            temporary = path.with_name(f".{storage.TOKENIZER}")
            shutil.rmtree(temporary, ignore_errors=True)  # of a preparation that was killed
            _save(tokenizer, temporary)
            os.rename(temporary, path)
    return load_tokenizer(str(path))


def _save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(str(folder))
    except OSError:
        raise
    except Exception as error:  # the Rust half tells of a full disk by a bare Exception
        raise OSError(errno.EIO, str(error)) from error


def split_rule(job: Plan, folder: UnfinishedFolder) -> SplitRule:
    """Which documents are validation's; after `make_tokenizer`, which surveys the corpus if need be."""
    if job.settings.data.validation_documents is None:
        return SplitRule(validation_below(job.settings.data.validation_fraction))
    found = folder.survey()
    assert found is not None
    return SplitRule(found.validation_below)
