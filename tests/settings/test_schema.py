"""The dataclasses describe themselves."""

from __future__ import annotations

from nystromformer.settings import PretrainSettings
from nystromformer.settings.schema import KINDS, settings_of

SETTINGS = {setting.key: setting for setting in settings_of(PretrainSettings)}


def test_keys_are_dotted_leaves():
    assert "training.steps" in SETTINGS
    assert "name" in SETTINGS
    assert "training" not in SETTINGS


def test_every_setting_has_a_type_that_can_be_named():
    assert {setting.kind for setting in SETTINGS.values()} <= set(KINDS)


def test_a_setting_in_full():
    setting = SETTINGS["training.micro_batch_size"]
    assert (setting.kind, setting.optional, setting.default) == (int, True, None)
    assert setting.documentation.startswith("Examples a device takes at once")
    assert setting.wanted == "a whole number or null"


def test_a_field_without_a_sentence_has_none():
    assert SETTINGS["model.hidden_size"].documentation == ""
