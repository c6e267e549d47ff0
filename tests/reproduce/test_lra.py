"""Long Range Arena: known values of ListOps, no padding in the answer, cells that are kept."""

import dataclasses

import pytest
import torch

from nystromformer.errors import UserError
from nystromformer.reproduce.lra.examples import bytes_of, load_task
from nystromformer.reproduce.lra.listops import END, OPERATORS, VOCABULARY, Grammar, expressions
from nystromformer.reproduce.lra.model import LraClassifier, configuration
from nystromformer.reproduce.lra.training import Cell, finished, train_cell
from nystromformer.settings.model import ATTENTIONS
from nystromformer.settings.scale import LraScale
from nystromformer.tasks.task import Examples
from nystromformer.training import loop
from nystromformer.training.phases import Plan

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
    curve_examples=16,
    checkpoint_every=2,
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


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_does_not_change_the_logits(attention, listops):
    torch.manual_seed(0)
    model = LraClassifier(configuration(attention, listops, SMALL)).eval()
    ids = torch.tensor([[*range(1, 15), *range(1, 15)]])
    padded = torch.cat([ids, torch.zeros(1, 9, dtype=torch.long)], dim=1)
    with torch.no_grad():
        alone = model(ids, torch.ones_like(ids))
        beside = model(padded, (padded > 0).long())
    assert (alone - beside).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_each_attention_trains(attention, listops, tmp_path):
    measured = train_cell(Cell("listops", attention, 0), listops, SMALL, CPU, tmp_path)
    assert measured["steps"] == 4
    assert [point["step"] for point in measured["curve"]] == [2, 4]
    assert 0 <= measured["accuracy"] <= 1
    assert finished(tmp_path) == measured
    assert not (tmp_path / "checkpoints").exists()


def test_a_killed_cell_goes_on_to_the_same_end(listops, tmp_path, monkeypatch):
    cell = Cell("listops", "nystrom", 0)
    whole = train_cell(cell, listops, SMALL, CPU, tmp_path / "whole")
    step, rate, done = loop.train_step, Plan.rate, []

    def killed(*args, **named):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return step(*args, **named)

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_cell(cell, listops, SMALL, CPU, tmp_path / "killed")
    assert finished(tmp_path / "killed") is None
    steps = []
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(Plan, "rate", lambda plan, step, *rest: steps.append(step) or rate(plan, step, *rest))
    again = train_cell(cell, listops, SMALL, CPU, tmp_path / "killed")
    assert steps == [2, 3]  # from the checkpoint of step 2
    assert again["curve"] == whole["curve"]


def test_another_configuration_is_another_cell():
    cell = Cell("listops", "nystrom", 0)
    folder = cell.folder("runs", SMALL, "cpu", "data")
    assert folder != cell.folder("runs", dataclasses.replace(SMALL, listops_steps=5), "cpu", "data")
    assert folder == cell.folder(
        "runs", dataclasses.replace(SMALL, text_steps=5, seeds=[0, 1]), "cpu", "data"
    )
    assert folder != cell.folder("runs", SMALL, "cpu", "other data")
