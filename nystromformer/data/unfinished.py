"""A preparation under way: the folder it fills, which blocks of the corpus are whole in it, and the steps
that make them.

    prepared/.unfinished-imdb-1f0c9a6be2d4/
      tokenizer/                complete or absent, as every file here
      train/00003.arrow         the training chunks of block 3
      validation/00003.arrow    its validation chunks
      .state/blocks/00003.json  written last: block 3 is whole, and these are its counts
      .state/corpus.json        how many blocks there are, once somebody has read the corpus to its end
      .state/survey.json        see `reading.survey`
      .state/shard-2-of-4       one of four machines has worked here

A preparation that is killed leaves this folder; the same command finds the blocks that are whole and makes
the others. Several machines can fill one folder: each file comes into its place by a rename.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nystromformer.data.documents import SPLITS, SplitRule, validation_below
from nystromformer.data.plan import Plan
from nystromformer.data.processes import ordered_map
from nystromformer.data.reading import (
    Blocks,
    DocumentBatch,
    DocumentProgress,
    ReadCounts,
    Survey,
    survey,
)
from nystromformer.data.segmentation import Chunks, Counts, Segmentation
from nystromformer.data.storage import TOKENIZER, ShardInfo, token_type, write_shard
from nystromformer.data.workers import Processed, Work, process_batch, start_worker
from nystromformer.errors import UserError
from nystromformer.files import replacing, replacing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    document_sizes: list[int]
    """Documents of each size, see DOCUMENT_SIZES."""
    moved: int | None
    """The document that was sent to the other split here, see SplitRule."""
    training_chunks: list[int]
    """Of each part of the corpus."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Block:
        shards = {split: ShardInfo(**shard) if shard else None for split, shard in content["shards"].items()}
        counts = {split: Counts(**counted) for split, counted in content["counts"].items()}
        read = [ReadCounts(**counted) for counted in content["read"]]
        return cls(**(content | {"shards": shards, "counts": counts, "read": read}))


def totals(counted: Iterable[Processed | Block]) -> tuple[dict[str, Counts], list[ReadCounts]]:
    """The counts of each split, and those of each part of the corpus, added up."""
    counts = {split: Counts() for split in SPLITS}
    read: list[ReadCounts] = []
    for one in counted:
        read = read or [ReadCounts() for _ in one.read]
        for split in SPLITS:
            counts[split].add(one.counts[split])
        for total, part in zip(read, one.read, strict=True):
            total.add(part)
    return counts, read


@dataclass(frozen=True)
class Unfinished:
    """A plan and the folder that is being filled with it, which need not exist yet."""

    plan: Plan
    path: Path
    show_progress: bool

    @classmethod
    def of(cls, plan: Plan, show_progress: bool) -> Unfinished:
        """In the folder that will become the plan's."""
        return cls(plan, plan.folder.with_name(PREFIX + plan.folder.name), show_progress)

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

    def write_state(self, name: str, content: object) -> None:
        """Write one of the files of `.state`."""
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
            expected = {self.path / shard.file: shard.bytes for shard in block.shards.values() if shard}
            if all(path.is_file() and path.stat().st_size == size for path, size in expected.items()):
                found[block.number] = block
        return found

    def write_block(self, results: list[Processed], dtype: np.dtype[Any], moved: int | None) -> Block:
        """Write the block that these results are, in order."""
        number = results[-1].block
        shards: dict[str, ShardInfo | None] = dict.fromkeys(SPLITS)
        for split in SPLITS:
            chunks = Chunks.concatenate([result.chunks[split] for result in results])
            if len(chunks):
                shards[split] = write_shard(self.path, f"{split}/{number:05d}.arrow", chunks, dtype)
        firsts = {split: [result.first_document[split] for result in results] for split in SPLITS}
        first = {split: next((one for one in firsts[split] if one is not None), None) for split in SPLITS}
        tokens = np.concatenate([result.document_tokens for result in results])
        size_class = np.minimum(np.log2(np.maximum(tokens, 1)).astype(np.int64), DOCUMENT_SIZES - 1)
        sizes = np.bincount(size_class, minlength=DOCUMENT_SIZES).tolist()
        of_parts = np.sum([result.training_chunks for result in results], axis=0).tolist()
        block = Block(number, shards, *totals(results), first, sizes, moved, of_parts)
        self.write_state(f"blocks/{number:05d}.json", asdict(block))
        return block

    def block_count(self) -> int | None:
        """How many blocks the corpus has, if that is known."""
        content = self._read_json("corpus.json")
        return None if content is None else int(content["blocks"])

    def survey(self) -> Survey | None:
        content = self._read_json("survey.json")
        return None if content is None else Survey(**content)

    def split_rule(self) -> SplitRule:
        """Which documents are validation's; after `make_tokenizer`, which surveys the corpus if need be."""
        data = self.plan.settings.data
        if data.validation_documents is None:
            return SplitRule(validation_below(data.validation_fraction))
        found = self.survey()
        assert found is not None
        return SplitRule(found.validation_below)

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


# --- the long steps -----------------------------------------------------------------------------------


def make_tokenizer(work: Unfinished) -> PreTrainedTokenizerFast:
    """The tokenizer in the unfinished folder, put there if missing; and the survey, if needed."""
    from nystromformer.data.tokenizer import load_tokenizer, train_tokenizer

    path, tokenizer, settings = work.path / TOKENIZER, work.plan.given_tokenizer, work.plan.settings
    needs_survey = settings.data.validation_documents is not None and work.survey() is None
    if not path.exists() or needs_survey:
        train = tokenizer is None
        sample: list[str] = []
        if train or needs_survey:
            found, sample = survey(work.plan.corpus, settings, sample=train, show_progress=work.show_progress)
            work.plan.inputs.complain_if_changed()
            work.write_state("survey.json", asdict(found))
        if not path.exists():
            if tokenizer is None:
                tokenizer = train_tokenizer(sample, settings.tokenizer, max_length=settings.max_length)
            with replacing_folder(path) as folder:  # a tokenizer that is there is whole
                try:
                    tokenizer.save_pretrained(str(folder))
                except OSError:
                    raise
                except Exception as error:  # the Rust half tells of a full disk by a bare Exception
                    raise OSError(errno.EIO, str(error)) from error
    return load_tokenizer(str(path))


def make_blocks(
    work: Unfinished, tokenizer: PreTrainedTokenizerFast, wanted: Callable[[int], bool], rule: SplitRule
) -> tuple[list[Block], int]:
    """Read the corpus, write its `wanted` blocks; return them and the number of all blocks."""
    from nystromformer.data.tokenizer import plain_backend

    settings, corpus = work.plan.settings, work.plan.corpus
    data = settings.data
    segmentation = Segmentation(settings.max_length, data.short_sequence_probability, settings.seed)
    for_workers = Work(plain_backend(tokenizer), segmentation, data.language, rule)
    blocks = Blocks(corpus, data.shard_megabytes * 1e6)
    surveyed = work.survey()
    total = surveyed.bytes if surveyed else corpus.total_bytes
    made: list[Block] = []
    results: list[Processed] = []
    with DocumentProgress("preparing", total_bytes=total, show=work.show_progress) as progress:

        def batches() -> Iterator[DocumentBatch]:
            for batch in blocks:
                if wanted(batch.block):
                    yield batch
                else:
                    progress.passed(sum(counts.bytes for counts in batch.read))

        for result in ordered_map(
            process_batch, batches(), workers=data.workers, initializer=start_worker, initargs=(for_workers,)
        ):
            results.append(result)
            if result.ends_block:
                work.plan.inputs.complain_if_changed()  # before it is written: what is there is right
                made.append(work.write_block(results, token_type(len(tokenizer)), rule.moved))
                results = []
            progress.advance(
                sum(counts.documents for counts in result.read),
                sum(counts.bytes for counts in result.read),
                int(result.document_tokens.sum()),
            )
    assert blocks.count is not None  # the corpus was read to its end
    return made, blocks.count
