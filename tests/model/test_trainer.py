"""transformers' own Trainer: a batch's loss and gradients are the same however it is accumulated."""

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from nystromformer import model as ours
from nystromformer.model import NystromformerConfig

ROWS, N, K, C = 8, 12, 3, 4
SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)]
"""Rows a part, and parts a step; the last of 3, 3 and 2 rows."""


def ids(*shape: int) -> Tensor:
    return torch.randint(5, 50, shape)


def some_tokens(classes: int, counts=(1, 9, 0, 3, 12, 2, 5, 1)) -> Tensor:
    """Labels at so many tokens of each row."""
    labels = torch.randint(0, classes, (ROWS, N))
    return torch.where(torch.arange(N) < torch.tensor(counts)[:, None], labels, -100)


def of_texts(**changes):
    return "NystromformerForSequenceClassification", {"problem_type": None, **changes}


ORDER = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0])
CLASSES = torch.tensor([0, 1, -100, 2, 3, -100, 1, 0])
HEADS = {
    "masked tokens": ("NystromformerForMaskedLM", {}, lambda: {"labels": some_tokens(50)}),
    "pretraining, tokens alone": ("NystromformerForPreTraining", {}, lambda: {"labels": some_tokens(50)}),
    "pretraining": (
        "NystromformerForPreTraining",
        {},
        lambda: {"labels": some_tokens(50, [3] * ROWS), "sentence_order_label": ORDER},
    ),
    "sentence order alone": ("NystromformerForPreTraining", {}, lambda: {"sentence_order_label": ORDER}),
    "tokens": ("NystromformerForTokenClassification", {}, lambda: {"labels": some_tokens(C)}),
    "choices": ("NystromformerForMultipleChoice", {}, lambda: {"labels": torch.randint(0, K, (ROWS,))}),
    "answers": (
        "NystromformerForQuestionAnswering",
        {},
        lambda: {
            "start_positions": torch.randint(0, N, (ROWS,)),
            "end_positions": torch.randint(0, N, (ROWS,)),
        },
    ),
    "classes": (*of_texts(), lambda: {"labels": CLASSES}),
    "several classes": (*of_texts(), lambda: {"labels": torch.randint(0, 2, (ROWS, C)).float()}),
    "a number": (*of_texts(num_labels=1), lambda: {"labels": torch.randn(ROWS, 1)}),
    "numbers": (*of_texts(problem_type="regression"), lambda: {"labels": torch.randn(ROWS, C)}),
}


def case(head: str, **settings) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    name, changes, targets = HEADS[head]
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 16, "num_landmarks": 4, "conv_kernel_size": 3, "num_labels": C}
    model = getattr(ours, name)(
        NystromformerConfig(**{**shape, "hidden_dropout_prob": 0.0, **changes, **settings})
    )
    inputs = ids(ROWS, K, N) if "Choice" in name else ids(ROWS, N)
    return model, {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), **targets()}


class OwnLoss:
    """The objective that is a head's own loss."""

    losses = ("loss",)

    def counts(self, batch):
        return (len(batch["input_ids"]),)

    def means(self, model, batch):
        return (model(**batch).loss,)

    def flops(self, lengths, counts):
        return 0.0


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.found = {key: x.grad.clone() for key, x in model.named_parameters() if x.grad is not None}


def trainer(model, batch, folder, callbacks=None, **settings) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=1, max_grad_norm=0.0, report_to="none", save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip
    rows = [{key: x[row] for key, x in batch.items()} for row in range(ROWS)]
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: f"{split[0]}x{split[1]}")
@pytest.mark.parametrize("head", HEADS)
def test_a_step_is_that_of_the_whole_batch(head, split, tmp_path):
    rows, parts = split
    counted = "labels" in HEADS[head][2]()
    if split == (3, 3) and not counted:
        pytest.skip("without `labels` Trainer takes the mean of the parts' means, whatever their rows")
    model, batch = case(head)
    loss = model.train()(**batch).loss
    loss.backward()
    expected = {key: x.grad.clone() for key, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    seen = Gradients()
    settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": parts}
    result = trainer(model, batch, tmp_path, [seen], **settings).train()
    assert result.training_loss == pytest.approx(loss.item(), rel=1e-5)
    assert seen.found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(seen.found[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: f"{split[0]}x{split[1]}")
def test_sentence_order_keeps_its_weight_beside_uneven_tokens(split, tmp_path):
    """Trainer counts tokens and not rows, so that each part weighs as its tokens do."""
    rows, parts = split
    model, batch = case("pretraining")
    batch["labels"] = some_tokens(50)
    settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": parts}
    with torch.no_grad():  # every part has one sentence-order loss, ln 2, so that the weights must sum to 1
        model.cls.seq_relationship.weight.zero_()
        loss = model(**batch).loss.item()
    assert trainer(model, batch, tmp_path, **settings).train().training_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_evaluation_gives_the_mean_loss(head, tmp_path):
    model, batch = case(head)
    if "labels" in batch and head not in ("classes", "several classes", "a number", "numbers", "choices"):
        batch["labels"] = some_tokens(C, [3] * ROWS)  # Trainer weighs its batches by their rows
    elif head == "classes":
        batch["labels"] = CLASSES.clamp(min=0)
    settings = {"label_names": list(HEADS[head][2]())} if "PreTraining" in HEADS[head][0] else {}
    evaluated = trainer(model, batch, tmp_path, per_device_eval_batch_size=4, **settings).evaluate()
    with torch.no_grad():
        assert evaluated["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_of_masked_tokens_is_berts(compiled):
    """Here tokens that are not predicted are left out; in a graph, where their number would break it, not."""
    torch._dynamo.reset()
    model, batch = case("masked tokens")
    bert = BertForMaskedLM(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    call = torch.compile(model.eval(), fullgraph=True, backend="eager") if compiled else model.eval()
    found, logits = call(**batch), model(**batch).logits
    bert.cls.register_forward_hook(lambda *_: logits)
    expected = bert(**batch).loss
    torch.testing.assert_close(found.loss, expected)
    parameters = list(model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert call(**nothing).loss == 0
