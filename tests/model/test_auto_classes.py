"""transformers' Auto classes give this project's models, or say in one line that there is none."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForNextSentencePrediction, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.nystromformer import NystromformerConfig as TheirConfig
from transformers.models.nystromformer import modeling_nystromformer as theirs

from nystromformer import model as ours
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig, auto

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
    "conv_kernel_size": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
AUTO = {
    name: value
    for name, value in vars(modeling_auto).items()
    if isinstance(value, type) and getattr(value, "_model_mapping", None) is not None
}
NAMES = {
    "AutoModelForTokenClassification": "NystromformerForTokenClassification",
    "AutoModelForQuestionAnswering": "NystromformerForQuestionAnswering",
    "AutoModelForMultipleChoice": "NystromformerForMultipleChoice",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of this project's, and one in the published layout."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    ours.NystromformerForPreTraining(NystromformerConfig(**SHAPE)).save_pretrained(root / "ours")
    theirs_config = TheirConfig(**SHAPE, num_landmarks=8, segment_means_seq_len=8)
    theirs.NystromformerForMaskedLM(theirs_config).save_pretrained(root / "published")
    return root


@pytest.mark.parametrize("origin", ["ours", "published"])
@pytest.mark.parametrize("name", AUTO)
def test_no_auto_class_opens_a_checkpoint_with_another_attention(name, origin, folders):
    if AUTO[name] not in auto.MODELS:
        with pytest.raises(ValueError, match=name if name != "AutoBackbone" else None):
            AUTO[name].from_pretrained(str(folders / origin))
        return
    model = AUTO[name].from_pretrained(str(folders / origin))
    assert type(model).__module__.startswith("nystromformer.model.")
    layers = [x for x in model.modules() if type(x).__name__ == "NystromformerSelfAttention"]
    assert layers[0].mechanism == "nystrom"


def test_the_published_names_are_all_taken():
    """What transformers can open of the type, this project opens."""
    known = {name for name, value in AUTO.items() if "nystromformer" in value._model_mapping._model_mapping}
    assert set(NAMES) <= known <= {value.__name__ for value in auto.MODELS}


def test_a_class_that_transformers_gets_later_is_refused_in_one_line(monkeypatch, folders):
    mapping = AutoModelForNextSentencePrediction._model_mapping
    monkeypatch.setitem(mapping._model_mapping, "nystromformer", "NystromformerForMaskedLM")
    monkeypatch.setattr(mapping, "_extra_content", {})
    auto.register_auto_classes()
    for call in (
        lambda: AutoModelForNextSentencePrediction.from_pretrained(folders / "ours"),
        lambda: AutoModelForNextSentencePrediction.from_config(NystromformerConfig(**SHAPE)),
    ):
        with pytest.raises(UserError, match="AutoModelForNextSentencePrediction: this project's") as caught:
            call()
        assert isinstance(caught.value, ValueError)  # what pipelines expect of a class that cannot
        assert "\n" not in str(caught.value)


def pair(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """This project's model and transformers' with one name; both with exact attention, in float64."""
    torch.manual_seed(1)
    labels: dict[str, Any] = {"num_labels": 5}
    other = getattr(theirs, name)(TheirConfig(**SHAPE, **labels, num_landmarks=8, segment_means_seq_len=8))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.3)
    model = getattr(ours, name)(NystromformerConfig(**SHAPE, **labels, attention="softmax"))
    return model.double().eval(), other.double().eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    shape = (3, 4, 20) if "Choice" in name else (3, 20)
    given = {"input_ids": torch.randint(1, 60, shape), "token_type_ids": torch.randint(0, 2, shape)}
    if "Question" in name:  # beyond the text, and before it
        positions = {"start_positions": [3, 25, 0], "end_positions": [7, 4, -1]}
        return given | {key: torch.tensor(value) for key, value in positions.items()}
    if "Choice" in name:
        return given | {"labels": torch.tensor([3, 0, 2])}
    return given | {"labels": torch.where(torch.rand(3, 20) < 0.7, torch.randint(0, 5, (3, 20)), -100)}


@pytest.mark.parametrize("direction", ["from transformers", "to transformers"])
@pytest.mark.parametrize("name", NAMES.values())
def test_weights_and_results_interchange_with_transformers(name, direction, tmp_path):
    model, other = pair(name)
    source, target = (other, model) if direction == "from transformers" else (model, other)
    source.save_pretrained(tmp_path)
    changes = {"attention": "softmax"} if target is model else {}
    target, report = type(target).from_pretrained(tmp_path, output_loading_info=True, **changes)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    given = inputs(name)
    found, expected = target.eval()(**given), source(**given)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value.double(), rtol=1e-5, atol=1e-6)
    found.loss.backward()
    expected.loss.backward()
    gradients = dict(source.named_parameters())
    for key, parameter in target.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_heads_start_from_a_pretraining_checkpoint(name, folders):
    model, report = AUTO[name].from_pretrained(folders / "ours", num_labels=5, output_loading_info=True)
    assert type(model).__name__ == NAMES[name]
    assert not report["unexpected_keys"]
    assert report["missing_keys"]
    assert not any(key.startswith("nystromformer.") for key in report["missing_keys"])
    assert model(**inputs(name)).loss.isfinite()
