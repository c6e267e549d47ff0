"""The configuration of a model that starts from a checkpoint: the checkpoint's, but for what was written.

Everything that makes a model from a source takes its shape from here: pretraining, fine-tuning, conversion.
A new field of the configuration is inherited without a line of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from nystromformer.errors import UserError
from nystromformer.model.configuration import CONFIGURATION, NystromformerConfig
from nystromformer.model.conversion.source import Source
from nystromformer.settings.model import configuration_name

NEW_CONVOLUTION = 33
"""Width of the convolution that a model gets with Nyström attention, where its source has none."""

LARGEST_PADDING = 64
"""A model's vocabulary may be padded by fewer rows than this."""

_OF_THE_FILE = frozenset(
    {"architectures", "auto_map", "dtype", "_name_or_path", "transformers_version", "model_type"}
    | {"id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict"}
)
"""What a configuration says of its file, its head and its callers: no part of a model made from it."""


def written(settings: Any, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The values of a dataclass of settings that the model's configuration has too, under its names.

    Args:
        without: names of settings that nobody wrote.
    """
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    named = {configuration_name(name): value for name, value in values.items() if name not in without}
    return {name: value for name, value in named.items() if name in CONFIGURATION}


def inherited(
    source: Source, changes: Mapping[str, Any], *, setting: str, section: str = ""
) -> NystromformerConfig:
    """The configuration of a model made from `source`, whose tensors need not have been read.

    Each field is the source's unless `changes` has it. Two are made up, and only where something is new: a
    BERT or RoBERTa gets Nyström attention, and a model that had another attention and no convolution gets
    one of NEW_CONVOLUTION with it.

    Args:
        changes: fields of the configuration that somebody asked for, see `written`.
        setting: the setting that names the source, for messages.
        section: where the settings behind `changes` are, for messages, e.g. `model.`.

    Raises:
        UserError: the source's tensors would not fit, or no model has such a configuration.
    """
    ours, theirs = dict(changes), source.config
    ours.setdefault("attention", "nystrom" if source.is_bert else theirs.attention)
    if ours["attention"] == "nystrom" != theirs.attention and theirs.conv_kernel_size is None:
        ours.setdefault("conv_kernel_size", NEW_CONVOLUTION)
    kept = {name: value for name, value in theirs.to_dict().items() if name not in _OF_THE_FILE}
    try:
        config = NystromformerConfig(**{**kept, **ours})
    except ValueError as error:
        raise UserError(f"{setting}={source.path} cannot be changed like this: {error}") from None
    check_shape(config, source, setting, section)
    return config


def check_shape(
    ours: NystromformerConfig, source: Source, setting: str = "init.path", section: str = "model."
) -> None:
    """Raise UserError where the source's tensors would not fit, with the override that makes them fit."""
    theirs = source.config
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if getattr(ours, key) != getattr(theirs, key):
            raise UserError(
                f"{setting}={source.path} has {key}={getattr(theirs, key)}, and {section}{key}="
                f"{getattr(ours, key)}: write {section}{key}={getattr(theirs, key)}"
            )
    if theirs.conv_kernel_size is not None and ours.conv_kernel_size not in (None, theirs.conv_kernel_size):
        raise UserError(
            f"{setting}={source.path} has trained kernels of conv_kernel_size={theirs.conv_kernel_size}, and "
            f"{section}conv_kernel_size={ours.conv_kernel_size} has no place for them: write "
            f"{section}conv_kernel_size={theirs.conv_kernel_size}"
        )
    if not 0 <= ours.vocab_size - theirs.vocab_size < LARGEST_PADDING:
        raise UserError(
            f"{setting}={source.path} has a vocabulary of {theirs.vocab_size}, the tokenizer one of about "
            f"{ours.vocab_size}: write tokenizer.path={source.path}"
        )
