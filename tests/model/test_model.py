"""What a model must do whatever its weights are."""

import warnings

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from nystromformer import (
    NystromformerConfig,
    NystromformerForMaskedLM,
    NystromformerForPreTraining,
    NystromformerForSequenceClassification,
    NystromformerModel,
)


def config(**changes) -> NystromformerConfig:
    shape = {
        "vocab_size": 101,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_landmarks": 8,
        "conv_kernel_size": 5,
        "max_position_embeddings": 70,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return NystromformerConfig(**{**shape, **changes})


@pytest.fixture(params=["nystrom", "neighbours", "softmax", "linformer", "longformer", "performer"])
def model(request):
    torch.manual_seed(0)
    neighbours = request.param == "neighbours"
    changes = {"neighbours": 8, "salient_tokens": 3} if neighbours else {"attention": request.param}
    return NystromformerForPreTraining(config(**changes)).eval()


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(5, 101, (rows, length))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 37, 70])
def test_a_row_is_the_same_alone_and_in_a_padded_batch(model, length):
    alone = tokens(1, length)
    batch, mask = tokens(3, 70), torch.ones(3, 70, dtype=torch.long)
    batch[1, :length] = alone[0]
    mask[1, length:] = 0
    mask[2, 11:] = 0
    with torch.no_grad():
        one = model(alone)
        several = model(batch, attention_mask=mask)
    torch.testing.assert_close(
        one.prediction_logits[0], several.prediction_logits[1, :length], atol=2e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        one.seq_relationship_logits[0], several.seq_relationship_logits[1], atol=2e-5, rtol=1e-5
    )


def test_logits_at_predicted_positions_only_equal_those_of_all_positions(model):
    ids = tokens(4, 30)
    labels = torch.full_like(ids, -100)
    labels[0, 3:7], labels[2, 29], labels[3, 0] = ids[0, 3:7], ids[2, 29], ids[3, 0]
    order = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        every = model(ids)
        some = model(ids, labels=labels, sentence_order_label=order)
    predicted = labels != -100
    assert some.prediction_logits.shape == (6, 101)
    torch.testing.assert_close(some.prediction_logits, every.prediction_logits[predicted])
    expected = torch.nn.functional.cross_entropy(every.prediction_logits[predicted], labels[predicted])
    torch.testing.assert_close(some.mlm_loss, expected)
    expected = torch.nn.functional.cross_entropy(every.seq_relationship_logits, order)
    torch.testing.assert_close(some.sop_loss, expected)
    torch.testing.assert_close(some.loss, some.mlm_loss + some.sop_loss)


def slots(labels: torch.Tensor, empty: int) -> dict[str, torch.Tensor]:
    """The labels as positions, and so many empty slots after them."""
    positions = (labels != -100).flatten().nonzero()[:, 0]
    predicted = labels.flatten()[positions]
    return {
        "prediction_positions": torch.nn.functional.pad(positions, (0, empty)),
        "prediction_labels": torch.nn.functional.pad(predicted, (0, empty), value=-100),
    }


@pytest.mark.parametrize("empty", [0, 1, 40])
@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
def test_slots_give_the_loss_and_gradient_of_the_labels(model, share, empty):
    ids, order = tokens(4, 30), torch.tensor([0, 1, 1, 0])
    labels = torch.where(torch.rand(4, 30) < share, ids, -100)
    results = []
    for given in ({"labels": labels}, slots(labels, empty)):
        model.zero_grad()
        output = model(ids, sentence_order_label=order, **given)
        output.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((output.mlm_loss, output.sop_loss, gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
def test_labels_give_the_same_where_they_cannot_be_counted(model, share):
    """In a graph, as on a GPU: logits are then computed everywhere, without choosing by values."""
    ids, order = tokens(4, 30), torch.tensor([0, 1, 1, 0])
    labels = torch.where(torch.rand(4, 30) < share, ids, -100)
    torch._dynamo.reset()
    results = []
    for call in (model, torch.compile(model, fullgraph=True, dynamic=False, backend="eager")):
        for items in (None, 40):
            model.zero_grad()
            output = call(ids, labels=labels, sentence_order_label=order, num_items_in_batch=items)
            output.loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            results.append((output.mlm_loss, output.sop_loss, gradients))
    torch.testing.assert_close(results[2:], results[:2], rtol=1e-6, atol=1e-7)
    assert output.prediction_logits.shape == (4, 30, 101)
    assert (results[2][0] == 0) == (share == 0)


def test_slots_choose_no_tensor_by_its_values(model):
    """What would make a GPU wait, and a compiled graph break; on a CPU `labels` do it."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        seen: tuple = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += (func.overloadpacket,)
            return func(*args, **kwargs or {})

    def operators(**given: torch.Tensor) -> set:
        with Watch() as watch:
            model(ids, sentence_order_label=torch.zeros(2, dtype=torch.long), **given).loss.backward()
        return set(watch.seen)

    ids = tokens(2, 30)
    labels = torch.where(torch.rand(2, 30) < 0.15, ids, -100)
    waits = {torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense, torch.ops.aten.masked_select}
    assert not operators(**slots(labels, 5)) & waits
    # With `labels` the tokens are indexed by a mask, which is a nonzero inside.
    assert torch.ops.aten.index in operators(labels=labels) - operators(**slots(labels, 5))


def test_labels_and_slots_do_not_go_together(model):
    ids = tokens(2, 9)
    with pytest.raises(ValueError, match="go together"):
        model(ids, prediction_positions=torch.tensor([1]))
    with pytest.raises(ValueError, match="give one of them"):
        model(ids, labels=ids, **slots(ids, 0))


def test_nothing_to_predict_is_a_loss_of_zero(model):
    ids = tokens(2, 9)
    assert model(ids, labels=torch.full_like(ids, -100)).mlm_loss == 0


def test_gradient_checkpointing_changes_no_gradient(model):
    ids = tokens(2, 40)
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # one of transformers' two names warns
                model.recompute_layers()
            assert model.nystromformer.encoder.gradient_checkpointing
        model.zero_grad()
        model(ids, labels=ids, sentence_order_label=torch.tensor([0, 1])).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-4)


def test_save_and_open_through_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    ids = tokens(2, 20)
    masked_lm = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(masked_lm) is NystromformerForMaskedLM
    with torch.no_grad():
        torch.testing.assert_close(masked_lm(ids).logits, model(ids).prediction_logits)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(encoder) is NystromformerModel
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids).pooler_output, model.nystromformer(ids).pooler_output)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(classifier) is NystromformerForSequenceClassification
    assert classifier(ids).logits.shape == (2, 3)


def test_decoder_is_tied_to_the_embedding_after_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = NystromformerForPreTraining.from_pretrained(tmp_path)
    assert again.cls.predictions.decoder.weight is again.nystromformer.embeddings.word_embeddings.weight


def test_classification_learns_a_planted_label():
    torch.manual_seed(0)
    model = NystromformerForSequenceClassification(config(num_labels=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        ids = tokens(32, 24)
        labels = torch.randint(0, 2, (32,))
        ids[torch.arange(32), torch.randint(1, 24, (32,))] = torch.where(labels == 1, 3, 4)
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_regression_head_uses_squared_error():
    model = NystromformerForSequenceClassification(config(num_labels=1)).eval()
    ids, labels = tokens(3, 9), torch.tensor([0.5, 2.0, -1.0])
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss, ((output.logits[:, 0] - labels) ** 2).mean())


def test_each_layer_says_which_branch_is_active():
    layer = NystromformerModel(config()).encoder.layer[0].attention.self
    assert [layer.branch(real_tokens) for real_tokens in (1, 8, 9)] == ["exact", "exact", "nystrom"]
    assert "8 landmarks" in repr(layer)
    near = NystromformerModel(config(neighbours=6)).encoder.layer[0].attention.self
    assert [near.branch(real_tokens) for real_tokens in (8, 12, 13)] == ["exact", "exact", "nystrom"]
    assert "blocks of 6" in repr(near)
    exact = NystromformerModel(config(attention="softmax")).encoder.layer[0].attention.self
    assert exact.branch(500) == "exact"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m(tokens(1, 71)), "71 tokens do not fit into the position table of 70"),
        (lambda m: m(tokens(1, 9), attention_mask=torch.ones(1, 9, 9)), "attention_mask must be"),
        (lambda m: m(tokens(1, 9), output_attentions=True), "never formed"),
        (lambda m: m(), "either input_ids or inputs_embeds"),
    ],
)
def test_impossible_calls_say_what_is_wrong(model, call, words):
    with pytest.raises(ValueError, match=words):
        call(model.nystromformer)


@pytest.mark.parametrize(
    "changes", [{"attention": "linear"}, {"num_attention_heads": 5}, {"conv_kernel_size": 4}]
)
def test_impossible_configurations_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        config(**changes)
