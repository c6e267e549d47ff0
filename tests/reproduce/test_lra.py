"""Long Range Arena: known values of ListOps, no padding in the answer, cells that are kept."""

import dataclasses

import pytest
import torch

from nystromformer.errors import UserError
from nystromformer.reproduce.lra import training
from nystromformer.reproduce.lra.examples import bytes_of, load_task
from nystromformer.reproduce.lra.listops import END, OPERATORS, VOCABULARY, Grammar, expressions
from nystromformer.reproduce.lra.model import LraClassifier, RunningNorm, configuration
from nystromformer.reproduce.lra.training import Cell, finished, train_cell
from nystromformer.settings.model import ATTENTIONS
from nystromformer.settings.scale import LraScale
from nystromformer.tasks.task import Examples
from nystromformer.training import loop

SMALL = LraScale(
    seeds=[0],
    listops_train=64,
    listops_test=32,
    listops_shortest=10,
    listops_longest=80,
    listops_steps=4,
    batch_size=8,
    learning_rate=1e-3,
    landmarks=8,
    kernel=5,
    linformer_projected=16,
    longformer_window=9,
    performer_features=16,
    curve_every=2,
    pooled_norm=True,
)
CPU = torch.device("cpu")


def ids_of(text):
    """Token ids of an expression as people write it."""
    return [VOCABULARY.index(token) for token in text.replace("]", " ]").split()]


def text_of(ids):
    """The expression of token ids."""
    return " ".join(VOCABULARY[token] for token in ids)


def evaluate(ids):
    """The value of an expression, from its tokens alone; raises ValueError where it is none."""
    open_lists = []
    value = None
    for number, token in enumerate(VOCABULARY[token] for token in ids):
        if value is not None:
            raise ValueError(f"token {number} follows the end of the expression")
        if token in OPERATORS:
            open_lists.append((token, []))
            continue
        if token == END:
            if not open_lists or not open_lists[-1][1]:
                raise ValueError(f"token {number} ends no list")
            operator, values = open_lists.pop()
            result = OPERATORS[operator](values)
        elif token.isdigit():
            result = int(token)
        else:
            raise ValueError(f"token {number} is padding")
        if open_lists:
            open_lists[-1][1].append(result)
        else:
            value = result
    if value is None:
        raise ValueError("the expression does not end")
    return value


@pytest.fixture(scope="module")
def listops():
    return load_task("listops", SMALL)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),
        ("[SM 9 8 7 ]", 4),
        ("[MED 1 2 ]", 1),  # 1.5, rounded down
        ("[MED 9 1 4 6 ]", 5),
        ("[MIN [SM 5 5 ] 3 ]", 0),
    ],
)
def test_known_values(text, value):
    assert evaluate(ids_of(text)) == value
    assert text_of(ids_of(text)) == text


@pytest.mark.parametrize("text", ["[MAX 1 2", "1 2", "[MIN ]", "]"])
def test_what_is_no_expression(text):
    with pytest.raises(ValueError, match=r"token|end"):
        evaluate(ids_of(text))


def test_expressions_by_the_grammar():
    grammar = Grammar(shortest=15, longest=60, depth=4, arguments=5)
    texts, values = expressions(grammar, 300, seed=3)
    assert (texts, values) == expressions(grammar, 300, seed=3)
    assert texts != expressions(grammar, 300, seed=4)[0]
    assert len({bytes(text) for text in texts}) == 300  # none twice, so none in two splits
    for text, value in zip(texts, values, strict=True):
        assert 15 <= len(text) <= 60
        assert evaluate(text) == value
        depth = deepest = 0
        for token in text_of(text).split():
            depth += token.startswith("[") - (token == "]")
            deepest = max(deepest, depth)
        assert deepest <= 3  # the fourth level holds digits alone
    assert set(values) == set(range(10))


def test_impossible_limits_are_told():
    with pytest.raises(UserError, match="ListOps: of 10,000 expressions none"):
        expressions(Grammar(shortest=50, longest=60, depth=2, arguments=3), 1, seed=0)


def test_bytes():
    encoded = bytes_of(Examples([("é!",), ("abcdef",)], [0.0, 1.0], ["0", "1"]), 4)
    assert encoded.input_ids == [[0xC3 + 1, 0xA9 + 1, ord("!") + 1], [98, 99, 100, 101]]
    assert encoded.truncated == 0.5


@pytest.mark.parametrize("attention", [*ATTENTIONS, "neighbours"])
def test_padding_does_not_change_the_logits(attention, listops):
    torch.manual_seed(0)
    model = LraClassifier(configuration(attention, listops, SMALL)).eval()
    ids = torch.tensor([[*range(1, 15), *range(1, 15)]])
    padded = torch.cat([ids, torch.zeros(1, 9, dtype=torch.long)], dim=1)
    with torch.no_grad():
        alone = model(ids, torch.ones_like(ids))
        beside = model(padded, (padded > 0).long())
    assert (alone - beside).abs().max() < 1e-5


@pytest.mark.parametrize("attention", [*ATTENTIONS, "neighbours"])
def test_each_attention_trains(attention, listops, tmp_path):
    measured = train_cell(Cell("listops", attention, 0, pretrained=True), listops, SMALL, CPU, tmp_path)
    assert [point["step"] for point in measured["masked"]["curve"]] == [2, 4]
    assert measured["steps"] == 4
    assert [point["step"] for point in measured["curve"]] == [2, 4]
    assert 0 <= measured["accuracy"] <= 1
    assert finished(tmp_path) == measured
    assert not [*tmp_path.rglob("checkpoints")]


def test_the_validation_examples_choose_what_is_measured_on_the_test_examples(listops, tmp_path, monkeypatch):
    looked_at = []

    def accuracy(model, examples, **_):
        weights = model.classifier[0].weight.detach().clone()
        looked_at.append((examples, weights))
        return [0.5, 0.4, 0.3][len(looked_at) - 1]

    monkeypatch.setattr(training, "accuracy", accuracy)
    measured = train_cell(Cell("listops", "nystrom", 0), listops, SMALL, CPU, tmp_path)
    of, weights = zip(*looked_at, strict=True)
    assert [*map(id, of)] == [*map(id, (listops.validation, listops.validation, listops.test))]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert (measured["best_step"], measured["accuracy"]) == (2, 0.3)


def test_no_example_is_in_two_parts(listops):
    limits = {"text_length": 400, "text_train": 90, "text_validation": 30, "text_test": 50}
    texts = load_task("text", LraScale(text_source="samples", **limits))
    for task in (listops, texts):
        rows = [*task.train.input_ids, *task.validation.input_ids, *task.test.input_ids]
        assert len(set(map(tuple, rows))) == len(rows)
    assert (len(texts.train), len(texts.validation), len(texts.test)) == (60, 30, 50)
    assert sum(texts.validation.labels) == 15


@pytest.mark.parametrize(
    ("pretrained", "killed_after", "left"),
    [(False, 3, 2), (True, 3, 2 + 4), (True, 4 + 3, 2)],
    ids=["task", "masked tokens", "task after masked tokens"],
)
def test_a_killed_cell_goes_on_to_the_same_end(
    pretrained, killed_after, left, listops, tmp_path, monkeypatch
):
    cell = Cell("listops", "nystrom", 0, pretrained)
    whole = train_cell(cell, listops, SMALL, CPU, tmp_path / "whole")
    step, done = loop.train_step, []

    def counted(*args, **named):
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append(1)
        return step(*args, **named)

    monkeypatch.setattr(loop, "train_step", counted)
    with pytest.raises(KeyboardInterrupt):
        train_cell(cell, listops, SMALL, CPU, tmp_path / "killed")
    assert finished(tmp_path / "killed") is None
    killed_after, done = None, []
    again = train_cell(cell, listops, SMALL, CPU, tmp_path / "killed")
    assert len(done) == left  # from the checkpoint of step 2
    kept = ("curve", "accuracy", "best_step")
    assert [again[name] for name in kept] == [whole[name] for name in kept]
    if pretrained:
        assert again["masked"]["curve"] == whole["masked"]["curve"]


def test_another_configuration_is_another_cell():
    cell = Cell("listops", "nystrom", 0)
    folder = cell.folder("runs", SMALL, "cpu", "data")
    masked = dataclasses.replace(SMALL, pretrain_masked=0.5)
    assert folder == cell.folder("runs", masked, "cpu", "data"), "not of a model without self-pretraining"
    pretrained = dataclasses.replace(cell, pretrained=True)
    assert len({folder, *(pretrained.folder("runs", scale, "cpu", "data") for scale in (SMALL, masked))}) == 3
    assert folder != cell.folder("runs", dataclasses.replace(SMALL, listops_steps=5), "cpu", "data")
    assert folder == cell.folder(
        "runs", dataclasses.replace(SMALL, text_steps=5, seeds=[0, 1]), "cpu", "data"
    )
    assert folder != cell.folder("runs", SMALL, "cpu", "other data")


def test_running_norm_is_the_same_in_training_and_afterwards_and_takes_the_common_part_away():
    torch.manual_seed(0)
    norm, common = RunningNorm(4), torch.tensor([50.0, -3.0, 0.0, 1.0])
    for _ in range(200):
        batch = common + torch.tensor([1.0, 0.1, 5.0, 2.0]) * torch.randn(64, 4)
        found = norm(batch)
    torch.testing.assert_close(norm.eval()(batch), found, rtol=0, atol=0)
    assert found.mean(0).abs().max() < 0.4
    assert (found.std(0) - 1).abs().max() < 0.3
    again = RunningNorm(4)
    again.load_state_dict(norm.state_dict())
    torch.testing.assert_close(again.train()(batch), norm.train()(batch), rtol=0, atol=0)


@pytest.mark.parametrize("normed", [True, False])
def test_what_differs_little_from_row_to_row_is_learned_where_it_is_normalised(normed):
    """Means as of hundreds of bytes: a common part sixteen times what differs."""
    torch.manual_seed(0)
    common, signal = torch.randn(64), torch.randn(64) / 16
    norm = RunningNorm(64) if normed else torch.nn.Identity()
    model = torch.nn.Sequential(norm, torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def draw(count):
        labels = torch.randint(0, 2, (count,))
        noise = torch.randn(count, 64) / 8
        return common + (labels[:, None] - 0.5) * signal + noise, labels

    for _ in range(40):
        rows, labels = draw(32)
        torch.nn.functional.cross_entropy(model(rows), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows, labels = draw(4000)
    share = (model.eval()(rows).argmax(-1) == labels).float().mean().item()
    assert share > 0.9 if normed else share < 0.8
