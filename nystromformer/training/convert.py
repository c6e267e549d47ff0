"""`nystromformer convert`: any checkpoint known here, written for this project or for transformers.

Where `data` names text, the model is brought closer to what its source computes before it is written: in
closed form, then, if asked for, by training. The source with exact attention is the measure of both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nystromformer.attention.nystrom import near_in_words
from nystromformer.data.corpora import open_corpus
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.files import check_new_folder, new_folder, sha256_of_json
from nystromformer.hub import opened_tokenizer
from nystromformer.model.closed_form import fit_in_closed_form, with_exact_attention
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.heads import NystromformerForPreTraining
from nystromformer.model.layouts import export_for_transformers
from nystromformer.model.source import Copied, Source, open_source, written
from nystromformer.settings.convert import ConvertSettings
from nystromformer.settings.identity import identity, nested
from nystromformer.training.attention_transfer import error_of_states, text_rows, transfer_attention

HELD_OUT = 4
"""Rows at the beginning of the text that nothing is fitted to, which the errors are told of."""


def convert(settings: ConvertSettings) -> None:
    """Read, bring closer, write, and print what became of each part.

    Raises:
        UserError: a setting is impossible, the source cannot be read or the target not be written; or text is
            named, and there is nothing to fit, no tokenizer or no text.
    """
    settings.check()
    target = Path(str(settings.target)).expanduser()
    check_new_folder(target)
    source = open_source(
        str(settings.source), setting="source", num_attention_heads=settings.num_attention_heads
    )
    changes = {name: value for name, value in written(settings).items() if value is not None}
    if settings.max_length is not None:
        changes["max_position_embeddings"] = settings.max_length
    model, copied = source.model(source.configuration(changes), positions=settings.positions)
    tokenizer = _tokenizer(settings, source)
    lines = _bring_closer(settings, model, source, copied, tokenizer) if settings.data.corpus else []
    with new_folder(target) as beside:
        if settings.layout == "transformers":
            copied.left_out += export_for_transformers(model, beside, nystrom_length=settings.nystrom_length)
        else:
            model.save_pretrained(beside)
        told = _write_tokenizer(tokenizer, settings, model.config.max_position_embeddings, beside)
    print(f"{source.kind} {source.path} → {target}\n{copied}")
    print("\n".join([*lines, _about(source, model.config, settings), f"  tokenizer {told}"]))


def _about(source: Source, config: NystromformerConfig, settings: ConvertSettings) -> str:
    """What attention the written model computes, in this project and in transformers."""
    if config.attention == "nystrom":
        w = config.neighbours
        near = near_in_words(w, config.salient_tokens)
        here = (
            f"Nyström with {config.num_landmarks} landmarks{near} (exact for rows of at most "
            f"{max(config.num_landmarks, 2 * (w or 0))} tokens); "
            "attention=softmax for what transformers computes"
        )
    else:
        name = "exact" if config.attention == "softmax" else config.attention
        here = name + (" plus the convolution" if config.conv_kernel_size else "")
    lines = [f"  attention here: {here}"]
    if source.kind == "Nyströmformer" and config.attention == "nystrom":
        lines.append(
            "  transformers runs a checkpoint whose landmarks equal its segment length, as the published "
            "ones do, as exact attention: outputs of rows above that length differ"
        )
    if settings.layout == "transformers":
        there = "exact attention at any length"
        if settings.nystrom_length:
            there = f"Nyström attention, at {settings.nystrom_length} tokens only"
        lines.append(f"  attention in transformers' class: {there}")
    return "\n".join(lines)


# --- its tokenizer ------------------------------------------------------------------------------------


def _tokenizer(settings: ConvertSettings, source: Source) -> PreTrainedTokenizerBase | None:
    """That of `tokenizer_path`, or the source's, if it has one; raises UserError where one is needed."""
    path, corpus = settings.tokenizer_path or source.path, settings.data.corpus
    if source.kind == "authors' file" and not settings.tokenizer_path and not corpus:
        return None
    wrong, fix = f"data={corpus} needs a tokenizer, and {path} has none", "write tokenizer_path=FOLDER"
    if settings.tokenizer_path:
        wrong, fix = f"tokenizer_path={path} cannot be opened", "write a folder or hub name that has one"
    try:
        tokenizer = opened_tokenizer(path, wrong, fix)
    except UserError:
        if corpus or settings.tokenizer_path:
            raise
        return None
    if corpus and (tokenizer.cls_token_id is None or tokenizer.sep_token_id is None):
        raise UserError(
            f"the tokenizer of {path} has no [CLS] or no [SEP]: write another tokenizer_path=FOLDER"
        )
    source.check_tokenizer(tokenizer, path, most_unused=sys.maxsize)
    return tokenizer


def _write_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, settings: ConvertSettings, max_length: int, folder: Path
) -> str:
    """Write the tokenizer with the model's length; what was written, in words."""
    path = settings.tokenizer_path or settings.source
    if tokenizer is None:
        return f"none: {path} has none; write tokenizer_path=FOLDER, e.g. FacebookAI/roberta-base"
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    return f"of {path}, for {max_length} tokens"


# --- with text ----------------------------------------------------------------------------------------


def _bring_closer(
    settings: ConvertSettings,
    model: NystromformerForPreTraining,
    source: Source,
    copied: Copied,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[str]:
    """Fit and train the model as the settings say; what was done, in lines."""
    if source.config.attention != "softmax" or model.config.attention != "nystrom":
        raise UserError(
            f"data={settings.data.corpus}: text brings Nyström attention closer to a source's exact "
            f"attention; this is {source.config.attention} made {model.config.attention}: write data=null"
        )
    fits = settings.how != "zero"
    if fits and not copied.can_be_fitted:
        raise UserError(
            f"convolution={settings.how}: the model has no new convolution to fit: write convolution=zero "
            "transfer=true, or data=null"
        )
    assert tokenizer is not None, "text needs one"
    encoder, length = model.nystromformer.eval(), model.config.max_position_embeddings
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
        # By what it starts from and is measured on too: a stopped one goes on where those are the same.
        begun = [nested(identity(settings)), lines[0], [row["input_ids"].tolist() for row in held_out]]
        target = Path(str(settings.target)).expanduser()
        folder = target.with_name(f".{target.name}.transfer-{sha256_of_json(begun)[:8]}")
        done_by = transfer_attention(encoder, exact, training_rows(), held_out, settings, folder)
        lines[0] += f", {done_by.after:.3f} transferred"
        lines.append(
            f"transfer of {settings.trained}: {done_by.steps} steps of {settings.batch_size} rows in "
            f"{done_by.seconds / 60:.1f} minutes"
            + ("" if done_by.kept else ", no better: the weights are as they were")
        )
    lines[0] += f" ({len(held_out)} other rows of {length} tokens and less)"
    return [f"  {line.strip()}" for line in lines]
