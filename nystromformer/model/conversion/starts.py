"""The starts of pretraining: init=bert and init=checkpoint."""

from __future__ import annotations

from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.model.conversion.authors import is_authors_file, read_authors_file
from nystromformer.model.conversion.folders import read_folder
from nystromformer.model.conversion.source import Source
from nystromformer.model.conversion.transfer import Transfer, check_shape, transfer
from nystromformer.model.heads import NystromformerForPreTraining

_KINDS = {"bert": ("BERT", "RoBERTa"), "checkpoint": ("Nyströmformer", "authors' file")}


def read_source(path: str, start: str | None = None, *, setting: str = "init.path") -> Source:
    """Read a checkpoint of any kind known here.

    Args:
        start: `bert` or `checkpoint`, the kind that is expected; any kind when absent.

    Raises:
        UserError: nothing there, not readable, or of another kind than expected.
    """
    if is_authors_file(path):
        source = read_authors_file(Path(path), setting=setting)
    else:
        source = read_folder(path, setting=setting)
    if start is not None and source.kind not in _KINDS[start]:
        other = "checkpoint" if start == "bert" else "bert"
        wanted = "BERT or RoBERTa" if start == "bert" else "Nyströmformer"
        raise UserError(f"{setting}={path} holds a {source.kind}, not a {wanted}: write init={other} for it")
    return source


def start_from(model: NystromformerForPreTraining, source: Source, *, positions: str = "tile") -> Transfer:
    """Copy a source into a model of the same shape; see `transfer`.

    Raises:
        UserError: another shape.
    """
    check_shape(model.config, source)
    return transfer(model, source, positions=positions)


def start_from_bert(model: NystromformerForPreTraining, path: str, *, positions: str = "tile") -> Transfer:
    """Copy a BERT's or RoBERTa's encoder, embeddings, pooler and MLM head into a model of the same shape.

    The residual convolution starts at zero, so that rows of at most `num_landmarks` tokens come out
    as BERT gives them; `fit_convolutions` makes it useful. Positions beyond BERT's table are made from it.

    Args:
        path: folder or hub name in transformers' layout, safetensors.

    Raises:
        UserError: no such checkpoint, not a BERT, or another shape.
    """
    return start_from(model, read_source(path, "bert"), positions=positions)


def start_from_checkpoint(
    model: NystromformerForPreTraining, path: str, *, positions: str = "tile"
) -> Transfer:
    """Copy a Nyströmformer of the same shape; a position table of another length is made from its own.

    Raises:
        UserError: no such checkpoint, not a Nyströmformer, or another shape.
    """
    return start_from(model, read_source(path, "checkpoint"), positions=positions)
