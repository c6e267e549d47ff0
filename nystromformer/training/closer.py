"""`nystromformer convert` with text: the new model brought closer to what its source computes.

In closed form, then, if asked for, by training; the source with exact attention is the measure of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nystromformer.data.corpora import open_corpus
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model.conversion.convert import convert
from nystromformer.model.conversion.source import Source
from nystromformer.model.conversion.transfer import Transfer
from nystromformer.model.heads import NystromformerForPreTraining
from nystromformer.model.reconstruction import fit_in_closed_form, with_exact_attention
from nystromformer.settings.convert import ConvertSettings
from nystromformer.training.hidden_states import error_of_states, transfer_attention
from nystromformer.training.text_rows import text_rows

HELD_OUT = 4
"""Rows at the beginning of the text that nothing is fitted to, which the errors are told of."""


def convert_with_text(settings: ConvertSettings) -> None:
    """See `convert`; where `data` names text, the model is fitted and trained on it before it is written.

    Raises:
        UserError: as `convert`, or there is nothing to fit, no tokenizer or no text.
    """

    def closer(model: NystromformerForPreTraining, source: Source, done: Transfer) -> list[str]:
        return bring_closer(settings, model, source, done)

    convert(settings, closer if settings.data.corpus else None)


def bring_closer(
    settings: ConvertSettings, model: NystromformerForPreTraining, source: Source, done: Transfer
) -> list[str]:
    """Fit and train the model as the settings say; what was done, in lines.

    Raises:
        UserError: see `convert_with_text`.
    """
    if source.config.attention != "softmax" or model.config.attention != "nystrom":
        raise UserError(
            f"data={settings.data.corpus}: text brings Nyström attention closer to a source's exact "
            f"attention; this is {source.config.attention} made {model.config.attention}: write data=null"
        )
    fits = settings.how != "zero"
    if fits and not done.new_convolution:
        raise UserError(
            f"convolution={settings.how}: the model has no new convolution to fit: write convolution=zero "
            "transfer=true, or data=null"
        )
    tokenizer, encoder = _tokenizer(settings), model.nystromformer.eval()
    length = model.config.max_position_embeddings
    corpus = open_corpus(settings.data)

    def training_rows() -> Iterator[Batch]:
        rows = text_rows(corpus, tokenizer, length)
        first = list(islice(rows, HELD_OUT + 1))
        yield from first[HELD_OUT:] or first  # text of a few rows is all there is
        yield from rows

    held_out = list(islice(text_rows(corpus, tokenizer, length), HELD_OUT))
    exact = with_exact_attention(encoder)  # while its weights are the source's
    lines = [f"error of the last hidden state: {error_of_states(encoder, exact, held_out):.3f} as it is"]
    if fits:
        calibration = list(islice(training_rows(), settings.rows))
        lines += fit_in_closed_form(encoder, calibration, settings.how).splitlines()
        lines[0] += f", {error_of_states(encoder, exact, held_out):.3f} fitted"
    if settings.transfer:
        done_by = transfer_attention(encoder, exact, training_rows, held_out, settings)
        lines[0] += f", {done_by.after:.3f} transferred"
        lines.append(
            f"transfer of {settings.trained}: {done_by.steps} steps of {settings.batch_size} rows in "
            f"{done_by.seconds / 60:.1f} minutes"
            + ("" if done_by.kept else ", no better: the weights are as they were")
        )
    lines[0] += f" ({len(held_out)} other rows of {length} tokens and less)"
    return [f"  {line.strip()}" for line in lines]


def _tokenizer(settings: ConvertSettings) -> PreTrainedTokenizerBase:
    path = settings.tokenizer_path or str(settings.source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers raises half a dozen kinds
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data={settings.data.corpus} needs a tokenizer, and {path} has none ({first_line}): write "
            "tokenizer_path=FOLDER"
        ) from None
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise UserError(
            f"the tokenizer of {path} has no [CLS] or no [SEP]: write another tokenizer_path=FOLDER"
        )
    return tokenizer
