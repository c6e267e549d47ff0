"""The long steps of a preparation: a tokenizer, and the corpus' blocks through the workers."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nystromformer.data import storage
from nystromformer.data.blocks import Batch, Blocks
from nystromformer.data.documents import validation_below
from nystromformer.data.parallel import ordered_map
from nystromformer.data.plan import Plan
from nystromformer.data.processing import Work, process_batch, start_worker
from nystromformer.data.progress import DocumentProgress
from nystromformer.data.segmentation import Segmentation
from nystromformer.data.splits import SplitRule
from nystromformer.data.survey import survey
from nystromformer.data.unfinished import Block, BlockWriter, UnfinishedFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
                from nystromformer.data.tokenizer_training import train_tokenizer

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
