"""Other checkpoints as the start of a model of this project, and back.

    folders.py     transformers' folders: BERT, RoBERTa, Nystromformer     ┐
    authors.py     the authors' `.model` and `.cp` files                   ┴→ a Source
    source.py      Source: its shape and its tensors under this project's names
    positions.py   a position table grown to another length
    inherit.py     the configuration of a model that starts from a Source
    transfer.py    copying a Source into a model, and the list of what was taken
    starts.py      the starts of pretraining: init=bert, init=checkpoint
    export.py      a folder that transformers' own class reads

Nothing is left out in silence: every copy returns its `Transfer`.
"""

from nystromformer.model.conversion.inherit import inherited, written
from nystromformer.model.conversion.positions import grow_positions, interpolate_positions, tile_positions
from nystromformer.model.conversion.source import Source
from nystromformer.model.conversion.starts import (
    read_source,
    start_from,
    start_from_bert,
    start_from_checkpoint,
)
from nystromformer.model.conversion.transfer import Transfer

__all__ = [
    "Source",
    "Transfer",
    "grow_positions",
    "inherited",
    "interpolate_positions",
    "read_source",
    "start_from",
    "start_from_bert",
    "start_from_checkpoint",
    "tile_positions",
    "written",
]
