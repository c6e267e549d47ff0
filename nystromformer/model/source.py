"""From a source to a model: the one way of pretraining, fine-tuning, conversion and the tables.

    source = open_source("MY_BERT")                        its kind and shape; no tensor is read yet
    config = source.configuration({"num_landmarks": 32})   the source's, but for what somebody wrote
    model, copied = source.model(config)                   every tensor that has a place; what became of each
    tokenizer = open_tokenizer(None, "MY_BERT")

`layouts.py` knows the files, `closed_form.py` fits what a Nyströmformer has and its BERT has not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.files import ContentHashes, sha256_of_json
from nystromformer.hub import opened_tokenizer
from nystromformer.mechanisms import MECHANISMS
from nystromformer.model.configuration import CONFIGURATION, NystromformerConfig
from nystromformer.model.encoder import POSITION_OFFSET, NystromformerPreTrainedModel
from nystromformer.model.heads import NystromformerForPreTraining
from nystromformer.model.layouts import (
    POSITIONS,
    TIED,
    TOKEN_TYPES,
    WORDS,
    Read,
    authors_layout,
    folder_layout,
    is_authors_file,
)
from nystromformer.settings.model import configuration_name, declared_fields

Model = TypeVar("Model", bound=NystromformerPreTrainedModel)

NEW_CONVOLUTION = 33
"""Width of the convolution that a model gets with Nyström attention, where its source has none."""

LARGEST_PADDING = 64
"""A model's vocabulary may be padded by fewer rows than this."""

CONVOLUTION = "attention.self.conv.weight"
_ONE_ROW_A_TOKEN = frozenset({WORDS, "cls.predictions.bias", *TIED})
_STARTS = {"bert": ("BERT", "RoBERTa"), "checkpoint": ("Nyströmformer", "authors' file")}
_OF_THE_FILE = frozenset(
    {"architectures", "auto_map", "dtype", "_name_or_path", "transformers_version", "model_type"}
    | {"id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict"}
)
"""What a configuration says of its file, its head and its callers: no part of a model made from it."""


def open_source(
    path: str,
    start: str | None = None,
    *,
    setting: str = "init.path",
    num_attention_heads: int | None = None,
) -> Source:
    """Look at a checkpoint of any kind known here; a folder's or hub name's tensors are read when asked for.

    Args:
        start: `bert` or `checkpoint`, the kind that is expected; any kind when absent.
        setting: what names the path, for messages.
        num_attention_heads: of an authors' file without a convolution, which does not tell it.

    Raises:
        UserError: nothing there, not readable, or of another kind than expected.
    """
    if is_authors_file(path):
        source = Source(path, *authors_layout(path, setting, num_attention_heads), setting)
    else:
        source = Source(path, *folder_layout(path, setting), setting)
    if start is not None and source.kind not in _STARTS[start]:
        other = "checkpoint" if start == "bert" else "bert"
        wanted = "BERT or RoBERTa" if start == "bert" else "Nyströmformer"
        raise UserError(f"{setting}={path} holds a {source.kind}, not a {wanted}: write init={other} for it")
    return source


@dataclass
class Source:
    """One checkpoint, opened."""

    path: str
    kind: str
    """`BERT`, `RoBERTa`, `Nyströmformer` or `authors' file`."""
    config: NystromformerConfig
    """The shape the tensors have; its attention is what the file says, which may not be what is wanted."""
    reader: Callable[[], Read]
    setting: str = "init.path"
    left_out: list[str] = field(default_factory=list)
    """Names in the file that have no place in the model, once its tensors have been read."""
    _weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A model without segments: both get the one row there is, and may part in training.
        self.config.type_vocab_size = max(self.config.type_vocab_size, 2)

    @property
    def is_bert(self) -> bool:
        """Whether its attention is another project's exact one, which says nothing about what is wanted."""
        return self.kind in _STARTS["bert"]

    def read(self) -> dict[str, Tensor]:
        """The tensors under this project's names, read once; raises UserError where they cannot be."""
        if not self._weights:
            weights, self.left_out = self.reader()
            types = weights.get(TOKEN_TYPES)
            if types is not None and types.shape[0] == 1:
                weights[TOKEN_TYPES] = types.repeat(2, 1)
            tied = TIED if self.config.tie_word_embeddings else ()
            self._weights = {name: tensor for name, tensor in weights.items() if name not in tied}
        return self._weights

    def configuration(self, changes: Mapping[str, Any], *, section: str = "") -> NystromformerConfig:
        """The configuration of a model made from this source.

        Each field is the source's unless `changes` has it, a new one without a line of its own. Two are made
        up, and only where something is new: a BERT or RoBERTa gets Nyström attention, and a model that had
        another attention and no convolution gets one of NEW_CONVOLUTION with it.

        Args:
            changes: fields of the configuration that somebody asked for, see `written`.
            section: where the settings behind `changes` are, for messages, e.g. `model.`.

        Raises:
            UserError: the tensors would not fit, no model has such a configuration, or the change is of
                another attention than the source's and nobody asked for that.
        """
        ours, theirs = dict(changes), self.config
        if "attention" not in ours and not self.is_bert:
            self._check_effect(ours, theirs.attention, section)
        ours.setdefault("attention", "nystrom" if self.is_bert else theirs.attention)
        if ours["attention"] == "nystrom" != theirs.attention and theirs.conv_kernel_size is None:
            ours.setdefault("conv_kernel_size", NEW_CONVOLUTION)
        kept = {name: value for name, value in theirs.to_dict().items() if name not in _OF_THE_FILE}
        try:
            config = NystromformerConfig(**{**kept, **ours})
        except ValueError as error:
            raise UserError(f"{self.setting}={self.path} cannot be changed like this: {error}") from None
        self.check_shape(config, section)
        return config

    def _check_effect(self, changes: Mapping[str, Any], attention: str, section: str) -> None:
        """Raise UserError where a change would do nothing, as no field of this attention."""
        own = {one.name for one in declared_fields(attention)}
        for other in MECHANISMS:
            for name in (one.name for one in declared_fields(other)):
                if name not in own and (value := changes.get(name)) is not None:
                    has = f"{self.setting}={self.path} has {attention} attention"
                    raise UserError(
                        f"{section}{name}={value} is of {other} attention, and {has}: write "
                        f"{section}attention={other} too, or leave it out"
                    )

    def check_shape(self, ours: NystromformerConfig, section: str = "model.") -> None:
        """Raise UserError where the tensors would not fit, with the override that makes them fit."""
        theirs, here = self.config, f"{self.setting}={self.path}"
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(ours, key) != getattr(theirs, key):
                raise UserError(
                    f"{here} has {key}={getattr(theirs, key)}, and {section}{key}={getattr(ours, key)}: "
                    f"write {section}{key}={getattr(theirs, key)}"
                )
        width = theirs.conv_kernel_size
        if width is not None and ours.conv_kernel_size not in (None, width):
            raise UserError(
                f"{here} has trained kernels of conv_kernel_size={width}, and {section}conv_kernel_size="
                f"{ours.conv_kernel_size} has no place for them: write {section}conv_kernel_size={width}"
            )
        if not 0 <= ours.vocab_size - theirs.vocab_size < LARGEST_PADDING:
            raise UserError(
                f"{here} has a vocabulary of {theirs.vocab_size}, the tokenizer one of about "
                f"{ours.vocab_size}: write tokenizer.path={self.path}"
            )

    def check_tokenizer(
        self, tokenizer: PreTrainedTokenizerBase, path: str, *, most_unused: int = LARGEST_PADDING - 1
    ) -> None:
        """Raise UserError where the tokenizer, that of `path`, is not the one of the word embeddings."""
        if not 0 <= self.config.vocab_size - len(tokenizer) <= most_unused:
            raise UserError(
                f"{self.setting}={self.path} has {self.config.vocab_size:,} word embeddings and the "
                f"tokenizer of {path} {len(tokenizer):,} tokens: write the tokenizer_path=FOLDER that the "
                "weights were trained with"
            )

    def model(
        self, config: NystromformerConfig, *, positions: str = "tile"
    ) -> tuple[NystromformerForPreTraining, Copied]:
        """A model with this source's weights; what the source has not is drawn, a convolution zero.

        Args:
            config: of the tensors' shape, see `configuration`.
            positions: how a position table of another length is made, see `grow_positions`.

        Raises:
            UserError: the tensors cannot be read, or have another shape.
        """
        self.read()  # before anything is drawn: transformers draws too, where a file has not all
        model = NystromformerForPreTraining(config)
        return model, self.copy_into(model, positions=positions)

    def model_with_head(
        self, model_class: type[Model], config: NystromformerConfig, *, positions: str = "tile"
    ) -> tuple[Model, Copied]:
        """The same with a new head of a task in place of those of pretraining."""
        pretraining, copied = self.model(config, positions=positions)
        model = model_class(config)  # after the other's draws: a seed gives the head that it always gave
        encoder: nn.Module = model.nystromformer
        encoder.load_state_dict(pretraining.nystromformer.state_dict(), strict=False)  # may have no pooler
        return model, copied

    def copy_into(self, model: NystromformerForPreTraining, *, positions: str = "tile") -> Copied:
        """Copy what has a place of the same shape; vocabularies may differ by padding rows only.

        A convolution that the source has not is set to zero: what attention computes without it is what the
        other weights were trained for, and rows of at most `num_landmarks` tokens come out as from a BERT.

        Raises:
            UserError: the tensors cannot be read, or have another shape.
        """
        self.check_shape(model.config)
        weights = dict(self.read())
        done = Copied(left_out=list(self.left_out))
        count = model.config.max_position_embeddings
        weights[POSITIONS] = grow_positions(weights[POSITIONS], count, positions)
        with torch.no_grad():
            # Performer's random features are no parameters, and its weights were trained with them.
            saved = model.state_dict().keys()
            buffers = (item for item in model.named_buffers() if item[0] in saved)
            for name, parameter in (*model.named_parameters(), *buffers):
                tensor = weights.pop(name, None)
                if tensor is not None and name in _ONE_ROW_A_TOKEN:  # padded to a round size in the model
                    parameter[: tensor.shape[0]].copy_(tensor[: parameter.shape[0]])
                elif tensor is not None and tensor.shape == parameter.shape:
                    parameter.copy_(tensor)
                else:
                    if name.endswith(CONVOLUTION):
                        parameter.zero_()
                        done.can_be_fitted = model.config.attention == "nystrom"
                    if tensor is not None:  # of another shape, e.g. Linformer's mixtures of another length
                        done.left_out.append(name)
                    done.new.append(name)
                    continue
                done.taken.append(name)
        done.left_out.extend(sorted(weights))
        return done


@dataclass
class Copied:
    """Names of the parameters that were taken, are new, or were left out: nothing is in silence."""

    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    can_be_fitted: bool = False
    """Whether Nyström attention has a new convolution, see `closed_form.py`."""

    def __str__(self) -> str:
        """A short table: what became of the tensors, and which parts of a model they are."""
        rows = (("taken", self.taken), ("new", self.new), ("left out", self.left_out))
        return "\n".join(f"  {title:<9}{len(names):>4}  {_parts(names)}" for title, names in rows if names)


def _parts(names: list[str]) -> str:
    """The parts of a model that names belong to, each with how many: layers and kinds are put together."""
    counts: Counter[str] = Counter(_part(name) for name in names)
    return ", ".join(part if count == 1 else f"{part} × {count}" for part, count in counts.items())


def _part(name: str) -> str:
    words = [word for word in name.split(".") if not word.isdigit()]
    if words[0] == "nystromformer":
        words = words[1:]
    if ".".join(words).endswith(CONVOLUTION):
        return "convolutions"
    if words[:2] == ["cls", "predictions"]:
        return "MLM head"
    if words[:2] == ["cls", "seq_relationship"]:
        return "sentence-order head"
    return words[0]


def written(settings: Any, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The values of a dataclass of settings that the model's configuration has too, under its names.

    Args:
        without: names of settings that nobody wrote.
    """
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    named = {configuration_name(name): value for name, value in values.items() if name not in without}
    return {name: value for name, value in named.items() if name in CONFIGURATION}


def grow_positions(table: Tensor, positions: int, how: str = "tile") -> Tensor:
    """A position table of another length; to fewer positions either way cuts it.

    `tile` repeats the trained rows (the authors' way): the first positions mean what they did before.
    `interpolate` stretches them, first row on first, last on last: neighbours come closer together than they
    were in training, and every position but the first changes; in exchange no two are the same.

    Args:
        table: (POSITION_OFFSET + trained positions, hidden); the rows before the offset stay as they are.

    Raises:
        ValueError: `how` is neither.
    """
    if how not in ("tile", "interpolate"):
        raise ValueError(f"positions={how!r} is unknown: use tile or interpolate")
    unused, trained = table[:POSITION_OFFSET], table[POSITION_OFFSET:]
    if how == "tile" or positions <= len(trained):
        return torch.cat([unused, trained.repeat(-(-positions // len(trained)), 1)[:positions]])
    stretched = F.interpolate(trained.T[None].float(), size=positions, mode="linear", align_corners=True)
    return torch.cat([unused, stretched[0].T.to(table.dtype)])


# --- what belongs to the weights: a tokenizer, and a content --------------------------------------------


def open_tokenizer(path: str | None, checkpoint: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `path`, or of the checkpoint; raises UserError where there is none to use."""
    name = f"tokenizer_path={path}" if path else f"checkpoint={checkpoint}"
    tokenizer = opened_tokenizer(
        path or checkpoint,
        f"{name} has no tokenizer that can be opened",
        "write tokenizer_path=FOLDER or a hub name",
    )
    if tokenizer.pad_token_id is None or tokenizer.cls_token_id is None:
        raise UserError(
            f"{name}: its tokenizer has no [PAD] or no [CLS] token: write another tokenizer_path=FOLDER"
        )
    return tokenizer


def content_of_checkpoint(path: str, hashes: ContentHashes | None = None) -> str | None:
    """SHA-256 of the weights and the configuration of a folder, of a hub name's copy here, or of a file.

    Where they lie and when they were written is not in it, nor the tokenizer, which has a content of its own.

    Args:
        path: a folder in transformers' layout, a hub name, or a file of the authors' code.
        hashes: what files hold, where several checkpoints share them.

    Returns:
        None where there is no such checkpoint on this machine.
    """
    hashes = hashes or ContentHashes()
    place = place_of(path)
    if place is None:
        return None
    if place.is_file():
        return hashes.of(place)
    found: dict[str, object] = {file.name: hashes.of(file) for file in sorted(place.glob("*.safetensors"))}
    if (config := place / "config.json").is_file():
        found[config.name] = _configuration(config, hashes)
    if not found:
        return None
    return sha256_of_json(found)


def place_of(path: str) -> Path | None:
    """The file or folder of a checkpoint on this machine; of a hub name the snapshot that was opened last."""
    local = Path(path).expanduser()
    if local.exists():
        return local
    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # no name that the hub could have
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _configuration(file: Path, hashes: ContentHashes) -> object:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        # What changes when the same model is saved again says nothing.
        return {k: v for k, v in content.items() if k not in ("transformers_version", "_name_or_path")}
    except (ValueError, AttributeError):  # no JSON object: its bytes are what there is
        return hashes.of(file)
