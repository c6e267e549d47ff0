"""What a checkpoint holds, by content: whether it is still the one that something was made from."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from nystromformer.files import ContentHashes, sha256_of_json

_SAYS_NOTHING = ("transformers_version", "_name_or_path")
"""Entries of config.json that change when the same model is saved again."""


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
    place = _place(path)
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


def _place(path: str) -> Path | None:
    """The file or folder on this machine; of a hub name the snapshot that was opened last."""
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
        return {key: value for key, value in content.items() if key not in _SAYS_NOTHING}
    except (ValueError, AttributeError):  # no JSON object: its bytes are what there is
        return hashes.of(file)
