"""How the models are called: every switch, tuples, labels in every shape, and no unknown argument."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from nystromformer import model as ours
from nystromformer.model import NystromformerConfig

B, N, K, C = 4, 12, 3, 5
MODELS = [name for name in ours.__all__ if name != "NystromformerConfig"]
HEADS = [name for name in MODELS if name not in ("NystromformerModel", "NystromformerForEmbedding")]
"""Those with a loss."""


def build(name: str, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = {
        **shape,
        "intermediate_size": 16,
        "num_landmarks": 8,
        "num_labels": C,
        "hidden_dropout_prob": 0.0,
    }
    return getattr(ours, name)(NystromformerConfig(**{**config, **changes})).eval()


def inputs(name: str) -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (B, K, N) if "Choice" in name else (B, N))
    mask = torch.ones_like(ids)
    mask[1, ..., 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def targets(name: str) -> dict[str, Tensor]:
    tokens = torch.where(torch.rand(B, N) < 0.6, torch.randint(0, C, (B, N)), -100)
    if "Question" in name:
        return {"start_positions": torch.tensor([1, 2, 3, 20]), "end_positions": torch.tensor([4, 20, 6, 7])}
    if "PreTraining" in name:
        return {"labels": tokens, "sentence_order_label": torch.tensor([0, 1, 1, 0])}
    if "Masked" in name or "Token" in name:
        return {"labels": tokens}
    return {"labels": torch.tensor([0, 1, 2, 1])} if name in HEADS else {}


def same(found, expected) -> None:
    if isinstance(expected, tuple):
        assert isinstance(found, tuple)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("states", [None, False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_return_dict_false_gives_the_same_in_a_tuple(name, labelled, states):
    model, given = build(name), inputs(name)
    given |= {
        **(targets(name) if labelled else {}),
        "output_hidden_states": states,
        "output_attentions": False,
    }
    output = model(**given)
    assert (output.get("loss") is not None) == (labelled and name in HEADS)
    assert (output.hidden_states is not None) == bool(states)
    if states:
        rows = B * K if "Choice" in name else B
        assert [x.shape for x in output.hidden_states] == [(rows, N, 16)] * 4
    expected = output.to_tuple()
    same(model(**given, return_dict=False), expected)
    assert type(model(**given, return_dict=None)) is type(output)
    model.config.return_dict = False
    same(model(**given), expected)
    assert type(model(**given, return_dict=True)) is type(output)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_switches_as_the_call_does(name):
    given = inputs(name)
    model = build(name, output_hidden_states=True)
    same(model(**given).hidden_states, build(name)(**given, output_hidden_states=True).hidden_states)
    assert model(**given, output_hidden_states=False).hidden_states is None
    for wants, asked in ((build(name, output_attentions=True), {}), (model, {"output_attentions": True})):
        with pytest.raises(ValueError, match="the n × n attention matrix is never formed"):
            wants(**given, **asked)


def test_only_the_hidden_states_asked_for_are_kept():
    """Without gradients, of L + 1 states no more than the layer's input and output live at once."""
    import gc
    import weakref

    model, alive, most = build("NystromformerModel", num_hidden_layers=6), [], []

    def note(module, inputs, output):
        alive.append(weakref.ref(output))
        most.append(sum(x() is not None for x in alive))

    for layer in model.encoder.layer:
        layer.register_forward_hook(note)
    gc.collect()
    with torch.no_grad():
        model(**inputs("NystromformerModel"))
    assert max(most) <= 2


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_argument_is_named_with_the_near_one(name):
    model, given = build(name), inputs(name)
    for wrong, near in [
        ("atention_mask", "attention_mask"),
        ("token_types_ids", "token_type_ids"),
        ("output_hidden_state", "output_hidden_states"),
        ("returndict", "return_dict"),
    ]:
        for value in (given["attention_mask"], None):
            with pytest.raises(TypeError, match=rf"{name}.forward.*'{wrong}': did you mean {near}\?"):
                model(**given, **{wrong: value})
    with pytest.raises(TypeError, match="'cu_seq_lens_q': it takes input_ids, "):
        model(**given, cu_seq_lens_q=torch.tensor([0, 4]))
    if name in HEADS and "Question" not in name:
        with pytest.raises(TypeError, match="'label': did you mean labels"):
            model(**given, label=torch.zeros(B, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_callers_pass_is_allowed(name):
    model, given = build(name), {**inputs(name), **targets(name)}
    expected = model(**given).to_tuple()
    neutral = {"use_cache": False, "past_key_values": None, "head_mask": None, "is_causal": False}
    same(model(**given, **neutral, return_loss=True, skip_logits=True).to_tuple(), expected)
    parameters = inspect.signature(model.forward).parameters  # what Trainer and pipelines choose columns by
    assert {"input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"} <= set(
        parameters
    )


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_arguments_may_stand_in_transformers_order(name):
    model, given = build(name), inputs(name)
    ids, mask = given.values()
    types, places = torch.randint(0, 2, ids.shape), torch.arange(N).flip(0).expand(ids.shape)
    expected = model(input_ids=ids, attention_mask=mask, token_type_ids=types, position_ids=places)
    same(model(ids, mask, types, places).to_tuple(), expected.to_tuple())
    embedded = model.get_input_embeddings()(ids)
    same(model(None, mask, types, places, embedded).to_tuple(), expected.to_tuple())


# --- labels -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", HEADS)
def test_labels_in_every_shape_and_integer_type(name):
    model, given, wanted = build(name), inputs(name), targets(name)
    expected = model(**given, **wanted).loss
    for change in (
        lambda x: x[..., None],
        lambda x: x.flatten(),
        lambda x: x.int(),
        lambda x: x[..., None].to(torch.int16),
    ):
        same(model(**given, **{key: change(x) for key, x in wanted.items()}).loss, expected)


def bert_and_ours(problem_type, columns) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two classifiers whose logits are equal: those of the weights put into the last layer's bias."""
    model = build("NystromformerForSequenceClassification", problem_type=problem_type, num_labels=columns)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForSequenceClassification(
        BertConfig(**shape, intermediate_size=16, problem_type=problem_type, num_labels=columns)
    ).eval()
    with torch.no_grad():
        bias = torch.randn(columns)
        for one in (model, bert):
            one.classifier.weight.zero_()
            one.classifier.bias.copy_(bias)
    return model, bert


IDS, ROW = [2, 0, 1, 2], [[0.5, 2.0, -1.0], [1.0, 0.0, 3.0], [0.2, 0.1, 0.0], [-2.0, 1.0, 1.0]]
MANY = [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
PROBLEMS = {
    "classes": ("single_label_classification", 3, IDS),
    "classes, (B, 1)": ("single_label_classification", 3, [[x] for x in IDS]),
    "classes, some that do not count": ("single_label_classification", 3, [2, -100, 1, 2]),
    "several classes at once": ("multi_label_classification", 3, MANY),
    "one of them, (B, 1)": ("multi_label_classification", 1, [[1.0], [0.0], [0.0], [1.0]]),
    "numbers": ("regression", 3, ROW),
    "a number, (B,)": ("regression", 1, [0.5, 2.0, -1.0, 4.0]),
    "a number, (B, 1)": ("regression", 1, [[0.5], [2.0], [-1.0], [-100.0]]),
    "whole numbers": ("regression", 1, [1, 2, 0, 4]),
    "not said: classes": (None, 3, IDS),
    "not said: several classes": (None, 3, MANY),
    "not said: a number": (None, 1, [[0.5], [2.0], [-1.0], [4.0]]),
    "not said: a whole number": (None, 1, [1, 2, 0, 4]),
}


@pytest.mark.parametrize(("problem", "columns", "labels"), PROBLEMS.values(), ids=PROBLEMS)
def test_the_classifier_does_what_berts_does(problem, columns, labels):
    model, bert = bert_and_ours(problem, columns)
    labels, ids = torch.tensor(labels), torch.randint(5, 50, (B, N))
    found, expected = model(ids, labels=labels), bert(ids, labels=labels)
    same(found.loss, expected.loss.float())
    assert model.config.problem_type == bert.config.problem_type
    found.loss.backward()
    expected.loss.backward()
    same(model.classifier.bias.grad, bert.classifier.bias.grad)


def test_regression_of_one_column_is_not_broadcast():
    model, given = build("NystromformerForSequenceClassification", num_labels=1), inputs("")
    labels = torch.tensor([0.5, 2.0, -1.0, 4.0])
    for shape in (labels, labels[:, None]):
        output = model(**given, labels=shape)
        same(output.loss, ((output.logits[:, 0] - labels) ** 2).mean())
    one = {key: x[:1] for key, x in given.items()}
    for single in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
        output = model(**one, labels=single)
        same(output.loss, (output.logits[0, 0] - 0.5) ** 2)


def test_ones_and_zeros_may_be_integers():
    model = build("NystromformerForSequenceClassification", problem_type="multi_label_classification")
    given, labels = inputs(""), torch.randint(0, 2, (B, C))
    output = model(**given, labels=labels)
    same(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels.float()))


@pytest.mark.parametrize(
    ("problem", "labels", "words"),
    [
        ("regression", torch.zeros(B), rf"labels of shape \({B}, {C}\) are needed, got \({B},\)"),
        ("multi_label_classification", torch.zeros(B, 1), rf"needed, got \({B}, 1\)"),
        ("single_label_classification", torch.zeros(B, C).long(), f"{B} predictions need as many class ids"),
        ("single_label_classification", torch.zeros(B), "must be integers, got labels of torch.float32"),
    ],
)
def test_impossible_labels_say_what_is_wrong(problem, labels, words):
    model = build("NystromformerForSequenceClassification", problem_type=problem)
    with pytest.raises(ValueError, match=words):
        model(**inputs(""), labels=labels)
