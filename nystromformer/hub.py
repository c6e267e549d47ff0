"""What is opened by a folder or by a name on the hub: asked for there only where the hub is within reach."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nystromformer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PATIENCE = 5.0
"""Seconds for the hub to answer anything at all."""


def look_for(path: str) -> None:
    """Before a folder or hub name is opened: a hub that cannot be reached is not asked, its cache is used.

    Its client would ask six times, with a line each and half a minute in all, and look into its cache then.
    """
    is_name = path.count("/") < 2 and not path.startswith((".", "/", "~"))
    if is_name and not Path(path).exists():
        _look_for_hub()


@cache
def _look_for_hub() -> None:
    from huggingface_hub import constants, get_session  # heavy, and needed for the hub only

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # of requests or of httpx, as the client's version has it
        constants.HF_HUB_OFFLINE = True  # what transformers, datasets and the client itself go by


def opened_tokenizer(path: str, wrong: str, fix: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; raises UserError `WRONG (why): FIX` where there is none."""
    from transformers import AutoTokenizer  # heavy, and not for all who look for the hub

    look_for(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises half a dozen kinds, the hub's client more
        raise UserError(f"{wrong} ({first_line(error)}): {fix}") from None


def first_line(error: Exception) -> str:
    """What an exception of others says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
