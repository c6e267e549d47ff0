import pytest
import torch

from nystromformer import NystromformerConfig, NystromformerForPreTraining
from nystromformer.settings import TrainingSettings
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.phases import plan_of


def test_warm_up_then_linear_decay_as_the_paper_says():
    paper = TrainingSettings(steps=100_000, warmup_steps=10_000, learning_rate=1e-4)
    assert plan_of(paper).rate(0) == pytest.approx(1e-8)
    assert plan_of(paper).rate(4_999) == pytest.approx(5e-5)
    assert plan_of(paper).rate(9_999) == pytest.approx(1e-4)
    assert plan_of(paper).rate(55_000) == pytest.approx(5e-5)
    assert plan_of(paper).rate(99_999) == pytest.approx(1e-4 / 90_000)
    assert plan_of(paper).rate(100_000) == 0


def test_time_limit_lowers_the_rate_to_zero():
    settings = TrainingSettings(steps=100, warmup_steps=0, learning_rate=1.0)
    assert plan_of(settings).rate(10, time_spent=0.75) == pytest.approx(0.25)
    assert plan_of(settings).rate(90, time_spent=0.5) == pytest.approx(0.1)
    assert plan_of(settings).rate(40, time_spent=0.39) == plan_of(settings).rate(40)
    assert plan_of(settings).rate(0, time_spent=1.0) == 0


def test_biases_and_norms_are_not_decayed():
    model = NystromformerForPreTraining(
        NystromformerConfig(
            vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name
    assert len(decay) == len(list(model.parameters()))


def test_adam_uses_the_configured_moments():
    optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainingSettings(beta1=0.8, beta2=0.95, epsilon=1e-7))
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert optimizer.defaults["eps"] == 1e-7
