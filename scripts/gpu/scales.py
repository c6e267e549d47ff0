"""How large the parts of `first_day.py` are: on a GPU, and on a CPU to see that everything works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: str
    dtype: str
    attention: Sequence[str]
    step: Sequence[str]
    """Words of both benchmarks, but for the lengths."""
    lengths: Sequence[Sequence[int]]
    """Of the whole steps: each list is a part, so that none takes too long."""
    attention_lengths: Sequence[int]
    compiled: bool
    small_steps: Mapping[str, Sequence[str]]
    """Parts, and their words: whole steps of a small model, whose kernels end before the next is launched."""
    pretrain: Sequence[str]
    efficiency: str
    finetune: Sequence[str]
    finetune_lengths: Sequence[int]
    tests: Sequence[str]


SMALL = [
    "tokens=8192", "layers=4", "hidden=256", "vocab_size=8192", "lengths=[128,512]", "neighbours=null",
    "models=[nystromformer,'nystromformer, exact attention']", "repeats=20",
]  # fmt: skip

GPU = Scale(
    device="cuda",
    dtype="bfloat16",
    attention=["tokens=65536", "repeats=20"],
    step=["tokens=65536", "layers=12", "hidden=768", "repeats=5", "modernbert=true"],
    lengths=[[512, 1024], [4096, 8192, 16384]],
    attention_lengths=[512, 1024, 2048, 4096, 8192, 16384],
    compiled=True,
    small_steps={"step_small": SMALL, "step_small_graphs": [*SMALL, "cuda_graphs=true"]},
    pretrain=[
        "experiment=base_512", "data=imdb", "tokenizer=wordpiece", "init=unigram", "name=gpu_base_512",
        "training.steps=600", "training.warmup_steps=100", "training.learning_rate=2e-4",
        "training.max_minutes=5", "training.log_every=20", "training.validate_every=200",
        "training.validation_examples=512", "training.checkpoint_every=100", "training.loader_workers=4",
        "training.profile_steps=3",
    ],
    efficiency="gpu",
    finetune=["task.epochs=1", "task.learning_rates=[5e-5]", "data.max_train_examples=4000"],
    finetune_lengths=[512, 2048],
    tests=[
        "tests/attention/test_gpu_kernels.py", "tests/attention/test_gpu_neighbours.py",
        "tests/attention/test_precision.py",
        "tests/attention/test_equations.py", "tests/attention/test_mechanisms.py",
        "tests/training/test_devices.py", "tests/training/test_graphs.py", "tests/model/test_states.py",
    ],
)  # fmt: skip

SMOKE = Scale(
    device="cpu",
    dtype="float32",
    attention=["tokens=128", "heads=2", "head_dim=16", "landmarks=16", "kernel=5", "repeats=1"],
    step=[
        "tokens=128", "layers=1", "hidden=32", "head_dim=16", "landmarks=16", "kernel=5", "vocab_size=300",
        "repeats=1", "modernbert=true",
    ],
    lengths=[[32], [64]],
    attention_lengths=[32, 64],
    compiled=False,
    small_steps={},
    pretrain=[
        "experiment=demo", "debug=smoke", "data=imdb", "name=gpu_smoke", "training.steps=30",
        "training.checkpoint_every=10", "training.validate_every=30", "training.precision=float32",
        "training.profile_steps=1",
    ],
    efficiency="smoke",
    finetune=[
        "task.epochs=1", "task.batch_sizes=[4]", "data.max_train_examples=8", "data.max_dev_examples=4",
    ],
    finetune_lengths=[32, 48],
    tests=["tests/attention/test_pseudoinverse.py"],
)  # fmt: skip

SCALES = {"gpu": GPU, "smoke": SMOKE}
