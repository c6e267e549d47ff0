"""The starts of pretraining: init=bert and init=checkpoint."""

from __future__ import annotations

from pathlib import Path

from nystromformer.errors import UserError
from nystromformer.model.conversion.authors import is_authors_file, read_authors_file
from nystromformer.model.conversion.folders import read_folder, shape_of_folder
from nystromformer.model.conversion.inherit import check_shape
from nystromformer.model.conversion.source import BERTS, Source
from nystromformer.model.conversion.transfer import Transfer, transfer
from nystromformer.model.heads import NystromformerForPreTraining

_KINDS = {"bert": BERTS, "checkpoint": ("Nyströmformer", "authors' file")}


def read_source(
    path: str,
    start: str | None = None,
    *,
    setting: str = "init.path",
    num_attention_heads: int | None = None,
    shape_only: bool = False,
) -> Source:
    """Read a checkpoint of any kind known here.

    Args:
        start: `bert` or `checkpoint`, the kind that is expected; any kind when absent.
        num_attention_heads: of an authors' file without a convolution, which does not tell it.
        shape_only: leave its tensors where they are.

    Raises:
        UserError: nothing there, not readable, or of another kind than expected.
    """
    if is_authors_file(path):
        source = read_authors_file(Path(path), num_attention_heads=num_attention_heads, setting=setting)
    else:
        source = (shape_of_folder if shape_only else read_folder)(path, setting=setting)
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
