"""task=embed: what is learned from which data, gradients of large batches, and the folder that is left."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, BertConfig, BertModel
from transformers.models.nystromformer import NystromformerModel as TransformersModel

from nystromformer.cli import main
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig, NystromformerModel
from nystromformer.model.embedding import mean_of_real
from nystromformer.model.source import open_tokenizer
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings
from nystromformer.tasks.batches import TaskBatches
from nystromformer.tasks.embedding import Embedder
from nystromformer.tasks.kinds.embed import EmbedTask
from nystromformer.tasks.pair_files import documents, read_vectors
from nystromformer.tasks.task import Examples
from nystromformer.training import loop
from tests.tasks.conftest import CHARACTERS, FILLERS, make_checkpoint, text_of
from tests.training.runs import events, on_processes


def name_of(number: int) -> str:
    """One of a thousand words that the vocabulary has only in letters."""
    return "".join(CHARACTERS[(number // 26**place + 7 * place) % 26] for place in range(3))


@pytest.fixture
def make(words):
    """The words of a training that looks at every step."""

    def with_more(*more: str) -> list[str]:
        return words("task=embed", "training.log_every=1", "training.evaluations_per_epoch=3", *more)

    return with_more


def of_pairs(path: Path) -> list[str]:
    return [f"data.train={path}", "data.text=query", "data.text_pair=passage"]


def trained(run: Path) -> Path:
    (folder,) = run.glob("embed/rate*/seed-0")
    return folder


def figures(run: Path) -> list[tuple]:
    folder = trained(run)
    steps = [(e["step"], e["loss"], e["gradient_norm"]) for e in events(folder, "train")]
    return steps + [(e["step"], e["loss"], e["score"]) for e in events(folder, "validation")]


# --- vectors ------------------------------------------------------------------------------------------


def test_a_vector_is_the_mean_over_real_tokens_and_depends_on_no_batch_mate(checkpoint):
    embedder = Embedder.load(checkpoint)
    draw = random.Random(2)
    texts = [text_of(draw, length=length) for length in (1, 30, 4, 60, 12)] + [""]
    found = embedder.encode(texts)
    assert found.shape == (6, 32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    encoder = AutoModel.from_pretrained(checkpoint).eval()
    assert isinstance(encoder, NystromformerModel)
    for number, one in enumerate(texts):
        alone = embedder.tokenizer(one, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            mean = encoder(**alone).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(embedder.encode([one], normalise=False)[0], mean, atol=1e-5)
        np.testing.assert_allclose(found[number], mean / mean.norm(), atol=1e-5)
    np.testing.assert_allclose(embedder.encode(texts, batch_size=2, tokens_per_batch=50), found, atol=1e-5)
    assert embedder.encode(iter([])).shape == (0, 32)
    states, mask = torch.randn(1, 3, 4), torch.tensor([[0, 1, 0]])
    torch.testing.assert_close(mean_of_real(states, mask)[0], states[0, 1])
    assert mean_of_real(states, torch.zeros(1, 3))[0].tolist() == [0] * 4


def test_a_bert_keeps_its_own_attention_and_can_be_given_another(checkpoint, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    bert = BertModel(config).eval()
    bert.save_pretrained(tmp_path)
    tokenizer = open_tokenizer(None, str(checkpoint))
    tokenizer.save_pretrained(tmp_path)
    texts = [text_of(random.Random(n), length=5 + 9 * n) for n in range(5)]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        states = bert(**batch).last_hidden_state
    wanted = mean_of_real(states, batch["attention_mask"]).numpy()
    np.testing.assert_allclose(Embedder.load(tmp_path).encode(texts, normalise=False), wanted, atol=1e-4)
    swapped = Embedder.load(tmp_path, attention="nystrom", num_landmarks=8, max_length=80)
    assert swapped.model.config.max_position_embeddings == 80
    off = np.abs(swapped.encode(texts, normalise=False) - wanted).max(axis=1)
    assert off[0] < 1e-4  # 7 tokens, which is exact
    assert off[2:].min() > 1e-3


# --- training -----------------------------------------------------------------------------------------


def test_pairs_are_learned_and_the_folder_is_sentence_transformers(make, tmp_path, capsys):
    draw, topics = random.Random(1), CHARACTERS[:10]
    rows = [
        {
            "query": f"{draw.choice(FILLERS)} {topics[n % 10]}",
            "passage": text_of(draw, *[f"{CHARACTERS[10 + n % 10]}"] * 3, length=draw.randint(1, 4)),
        }
        for n in range(200)
    ]
    pairs = tmp_path / "topics.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = [*of_pairs(pairs), "task.epochs=4", "task.batch_sizes=[12]", "model.hidden_dropout=0"]
    assert main(make(*task, "task.learning_rates=[3e-3]", "name=search")) == 0
    printed = capsys.readouterr().out
    assert "0.0% of the passages begin with their anchor\n" in printed
    run = tmp_path / "runs/search"
    curve = [event["mrr"] for event in events(trained(run), "validation")]
    assert curve[0] < 0.5
    assert (
        max(curve) > 0.6
    )  # two of twenty held-out passages are of one topic: chance finds 0.18, topics 0.75
    folder = run / "embed/model"
    texts = [json.loads(line)["passage"] for line in pairs.read_text().splitlines()]
    ours = Embedder.load(folder)
    assert ours.max_length == 48
    vectors = ours.encode(texts)
    theirs = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    assert isinstance(theirs[0].model, NystromformerModel)
    assert theirs.max_seq_length == 48
    np.testing.assert_allclose(theirs.encode(texts), vectors, atol=1e-5)
    out = tmp_path / "out"
    words = ["predict", f"checkpoint={folder}", f"file={pairs}", "text=passage", f"folder={out}"]
    assert main(words) == 0
    np.testing.assert_allclose(np.load(out / "vectors.npy"), vectors, atol=1e-6)
    # Who has not imported this project meets an error, never other vectors.
    with pytest.raises(TypeError, match="add_pooling_layer"):
        TransformersModel.from_pretrained(folder, add_pooling_layer=False)
    usage = (folder / "README.md").read_text()
    assert "import nystromformer.model" in usage
    assert "SentenceTransformer(" in usage
    assert "library_name: sentence-transformers" in usage
    assert "transformers refuses the folder" in usage


@pytest.mark.parametrize("kind", ["pairs in parts", "spans", "similarities"])
def test_what_is_killed_and_goes_on_is_as_if_nothing_had_been(kind, make, pairs, tmp_path, monkeypatch):
    task = of_pairs(pairs)
    if kind == "pairs in parts":
        task += ["training.micro_batch_size=4"]
    else:
        task = [f"data.train={pairs}", "data.text=passage"]
        task += ["data.pairs=spans"] if kind == "spans" else [f"data.vectors={tmp_path / 'v.npy'}"]
        task += ["task.loss=similarities"] if kind == "similarities" else []
        np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(60, 7)))
    assert main(make(*task, "name=whole")) == 0
    step, done = loop.train_step, []

    def killed(*arguments, **named):
        if len(done) == 4:
            raise ZeroDivisionError
        done.append(1)
        return step(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(ZeroDivisionError):
        main(make(*task, "name=killed"))
    monkeypatch.undo()
    assert main(make(*task, "name=killed")) == 0
    whole, again = tmp_path / "runs/whole", tmp_path / "runs/killed"
    assert len(figures(whole)) == 7 + 3
    assert figures(again) == figures(whole)
    weights = "embed/model/model.safetensors"
    assert (again / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["contrastive", "similarities"])
def test_two_processes_learn_from_one_batch(loss, make, pairs, tmp_path):
    task = [*of_pairs(pairs), "data.negatives=[wrong]", "task.symmetric=true"]
    if loss == "similarities":
        np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(60, 7)))
        task = [f"data.train={pairs}", "data.text=passage", f"data.vectors={tmp_path / 'v.npy'}"]
        task += ["task.loss=similarities"]
    task += ["model.hidden_dropout=0", "training.micro_batch_size=2"]
    assert main(make(*task, "name=one")) == 0
    on_processes(2, make(*task, "name=two")[1:], "finetune")
    one, two = figures(tmp_path / "runs/one"), figures(tmp_path / "runs/two")
    assert len(one) == len(two) == 7 + 3
    np.testing.assert_allclose(np.array(two), np.array(one), rtol=2e-4)


def test_documents_are_cut_anew_in_each_epoch_at_words(checkpoint):
    tokenizer = open_tokenizer(None, str(checkpoint))
    draw = random.Random(3)
    texts = [text_of(draw, *(name_of(n) for n in range(9)), length=length) for length in (0, 20, 60)] + [
        "a film"
    ]
    encoded = documents(Examples([(t,) for t in texts], [0] * 4, list("abcd")), tokenizer, 24)
    whole = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    seen = set()
    for epoch in range(8):
        drawn, places = encoded.drawn([(epoch, row) for row in range(4)], 7)
        assert places == [0, 1, 2, 3]
        again, _ = encoded.drawn([(epoch, 2)], 7)
        assert again.input_ids[0] == drawn.input_ids[2]
        for row, spans in enumerate(drawn.input_ids):
            found = []
            for span in spans:
                assert len(span) <= 24
                assert (span[0], span[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
                inner = span[1:-1]
                start = next(p for p in range(len(whole[row])) if whole[row][p : p + len(inner)] == inner)
                assert not tokenizer.convert_ids_to_tokens(inner[0]).startswith("##")
                found.append((start, start + len(inner)))
            (_, end), (start, _) = sorted(found)
            assert end <= start
            seen.add((row, *found))
    assert [len({x for x in seen if x[0] == row}) > 4 for row in range(3)] == [True] * 3
    other, _ = encoded.drawn([(0, 2)], 8)
    assert other.input_ids[0] != encoded.drawn([(0, 2)], 7)[0].input_ids[0]


def test_an_epochs_spans_do_not_depend_on_where_training_begins(checkpoint, pairs):
    tokenizer = open_tokenizer(None, str(checkpoint))
    texts = [(json.loads(line)["passage"],) for line in pairs.read_text().splitlines()]
    task = EmbedTask("embed", "embedding")
    encoded = task.encode(Examples(texts, [0] * 60, [""] * 60), tokenizer, 48)

    def batches(**shares: int) -> TaskBatches:
        return TaskBatches(
            encoded, lambda e, r: task.training_batch(e, r, 0, None), batch_size=8, micro_batch_size=None,
            seed=3, steps=20, **shares,
        )  # fmt: skip

    whole = [batch for (batch,) in batches().training(0, pin_memory=False)]
    later = [batch for (batch,) in batches().training(13, pin_memory=False)]
    assert len(later) == 7
    for one, other in zip(whole[13:], later, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    contents = [set(batch["content"].tolist()) for batch in whole]
    first, second = set().union(*contents[:7]), set().union(*contents[8:15])
    assert len(first & second) < len(first) / 2  # another epoch, other spans


def test_a_teachers_vectors_are_learned_from_either_file(make, pairs, tmp_path, checkpoint):
    texts = [json.loads(line)["passage"] for line in pairs.read_text().splitlines()]
    teacher = Embedder.load(make_checkpoint(tmp_path / "teacher", initializer_range=0.3)).encode(texts)
    np.save(tmp_path / "v.npy", teacher)
    table = pa.table({"id": [*map(str, range(60))], "vector": [*map(list, teacher)]})
    pq.write_table(table, tmp_path / "v.parquet")
    task = [f"data.train={pairs}", "data.text=passage", "task.epochs=6", "training.evaluations_per_epoch=1"]
    of_files = [read_vectors(f"{tmp_path / 'v'}.{ending}", "data.vectors") for ending in ("npy", "parquet")]
    assert all(np.array_equal(found, teacher) for found in of_files)
    assert main(make(*task, f"data.vectors={tmp_path / 'v.npy'}", "name=npy")) == 0
    curve = [event["cosine"] for event in events(trained(tmp_path / "runs/npy"), "validation")]
    assert curve[-1] > curve[0] + 0.05
    vectors = Embedder.load(tmp_path / "runs/npy/embed/model").encode(texts)
    assert (vectors * teacher).sum(1).mean() > (Embedder.load(checkpoint).encode(texts) * teacher).sum(
        1
    ).mean()


def test_many_right_passages_are_many_pairs_and_beginnings_can_be_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"title": "On wings", "text": "On Wings . A study of wings."},
        {"title": "On wings", "text": ["Two texts", "", "On wingspan"]},
        {"title": "Flow", "text": "Of flow"},
        {"title": "Flow", "text": "  flow: laminar", "wrong": "of heat"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSettings("embed", "embed")
    data = TaskDataSettings(train=str(path), dev=str(path), text="title", text_pair="text")
    kept = EmbedTask.load(task, data).train
    assert kept.labels == [1, 0, 0, 0, 1]
    with_wrong = EmbedTask.load(task, replace(data, negatives=["wrong"])).train
    assert [texts[2:] for texts in with_wrong.texts] == [(), (), (), (), ("of heat",)]
    with pytest.raises(UserError, match="has no column 'wrongs': name one of 'title', 'text'"):
        EmbedTask.load(task, replace(data, negatives=["wrongs"]))
    assert kept.texts[1:3] == [("On wings", "Two texts"), ("On wings", "On wingspan")]
    cut = EmbedTask.load(task, replace(data, remove_repeated=True)).train
    assert [passage for _, passage in cut.texts] == [
        "A study of wings.", "Two texts", "On wingspan", "Of flow", "laminar",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data.text=query"], "data.text_pair is empty: with task=embed write data.text_pair=COLUMN"),
        (["data.pairs=spans", "data.text_pair=passage"], "data.text_pair is not for data.pairs=spans"),
        (["data.text_pair=passage", "task.batch_sizes=[1]"], "task.batch_sizes holds 1, and a pair"),
        (["data.text_pair=passage", "training.compile=true"], "training.compile=true is not for task=embed"),
        (
            ["data.text_pair=passage", "training.cuda_graphs=true"],
            "training.cuda_graphs=true is not for task=",
        ),
        (["task.loss=vectors"], "data.vectors is empty: write data.vectors=FILE"),
        (
            ["data.vectors=V", "task.loss=contrastive", "data.text_pair=passage"],
            "data.vectors is not for task.loss=contrastive",
        ),
        (["data.vectors=V", "data.text_pair=passage"], "data.text_pair is not for vectors of another"),
        (["data.vectors=V", "data.malformed_rows=skip"], "would part data.vectors from their rows"),
        (["data.vectors=V", "data.text=query"], "hold 32, and the model's"),
        (["data.vectors=FEW", "data.text=query"], "has more rows than the 5 vectors of data.vectors"),
        (["data.vectors=MANY", "data.text=query"], "data.vectors holds 61 vectors, and "),
        (["data.vectors=NAN", "data.text=query"], "line 3 has a vector in data.vectors that is not finite"),
        (["data.vectors=V", "data.text=query", "data.dev=PAIRS"], "data.dev has no vectors of the other"),
        (["data.vectors=/nowhere.npy", "data.text=query"], "data.vectors=/nowhere.npy cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_line(given, said, make, pairs, tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(61, 5))
    vectors[2] = [np.nan if "data.vectors=NAN" in given else 1] * 5
    for name, count in (("V", 60), ("FEW", 5), ("MANY", 61), ("NAN", 60)):
        np.save(tmp_path / f"{name}.npy", vectors[:count])
    named = {name: f"{tmp_path / name}.npy" for name in ("V", "FEW", "MANY", "NAN")} | {"PAIRS": str(pairs)}
    words = [f"{key}={named.get(value, value)}" for key, _, value in (word.partition("=") for word in given)]
    assert main(make(f"data.train={pairs}", *words, "name=wrong")) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    if "hold 32" in said:
        said = (
            "data.vectors holds vectors of 5 numbers, and the model's have 32: write task.loss=similarities"
        )
    assert said in error
    assert not (tmp_path / "runs/wrong").exists()


def test_a_config_without_labels_opens_again(checkpoint, tmp_path):
    config = NystromformerConfig.from_pretrained(checkpoint)
    EmbedTask("embed", "embedding").configure(config)
    config.save_pretrained(tmp_path)
    assert NystromformerConfig.from_pretrained(tmp_path).num_labels == 0
