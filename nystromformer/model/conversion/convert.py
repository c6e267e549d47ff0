"""`nystromformer convert`: any checkpoint known here, written for this project or for transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from transformers import AutoTokenizer

from nystromformer.errors import UserError
from nystromformer.files import check_new_folder, new_folder
from nystromformer.model.configuration import NystromformerConfig, near_in_words
from nystromformer.model.conversion.authors import is_authors_file
from nystromformer.model.conversion.export import export_for_transformers
from nystromformer.model.conversion.inherit import inherited, written
from nystromformer.model.conversion.source import Source
from nystromformer.model.conversion.starts import read_source
from nystromformer.model.conversion.transfer import Transfer, transfer
from nystromformer.model.heads import NystromformerForPreTraining
from nystromformer.settings.convert import ConvertSettings

Closer: TypeAlias = Callable[[NystromformerForPreTraining, Source, Transfer], list[str]]
"""Brings a new model closer to what its source computes; says in lines what it did."""


def convert(settings: ConvertSettings, closer: Closer | None = None) -> None:
    """Read, write, and print what became of each part.

    Args:
        closer: called before anything is written.

    Raises:
        UserError: a setting is impossible, the source cannot be read or the target not be written.
    """
    if complaints := list(settings.complaints()):
        raise UserError("\n".join(complaints))
    target = Path(str(settings.target)).expanduser()
    check_new_folder(target)
    source = read_source(
        str(settings.source), setting="source", num_attention_heads=settings.num_attention_heads
    )
    model = NystromformerForPreTraining(_configuration(source, settings))
    done = transfer(model, source, positions=settings.positions)
    lines = closer(model, source, done) if closer else []
    with new_folder(target) as beside:
        if settings.layout == "transformers":
            done.left_out += export_for_transformers(model, beside, nystrom_length=settings.nystrom_length)
        else:
            model.save_pretrained(beside)
        tokenizer = _write_tokenizer(settings, model.config.max_position_embeddings, beside)
    print(f"{source.kind} {source.path} → {target}\n{done}")
    print("\n".join([*lines, _about(source, model.config, settings)]))
    print(f"  tokenizer {tokenizer}")


def _configuration(source: Source, settings: ConvertSettings) -> NystromformerConfig:
    changes = {name: value for name, value in written(settings).items() if value is not None}
    if settings.max_length is not None:
        changes["max_position_embeddings"] = settings.max_length
    return inherited(source, changes, setting="source")


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


def _write_tokenizer(settings: ConvertSettings, max_length: int, target: Path) -> str:
    """Write the tokenizer with the model's length; what was written, in words."""
    path = settings.tokenizer_path or str(settings.source)
    if settings.tokenizer_path is None and is_authors_file(path):
        return "none: the authors' files hold none; write tokenizer_path=FOLDER, e.g. FacebookAI/roberta-base"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers raises half a dozen kinds
        if settings.tokenizer_path is None:
            return f"none: {path} has none; write tokenizer_path=FOLDER"
        raise UserError(f"tokenizer_path={path} cannot be opened ({str(error).splitlines()[0]})") from None
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(target)
    return f"of {path}, for {max_length} tokens"
