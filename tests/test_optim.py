"""Which parameter gets which learning rate and decay, and the released program's optimizer step by step."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny_models import binarizers, tiny
from torch import nn

from bitlab import BitConfig, binarize, set_precision
from bitlab.distillation.optim import AdamWithoutCorrection, ClippingAdamW, parameter_groups, sparse_rows


def groups_of(model, **options):
    """Group name: names of its parameters."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, lr=3e-4, **options)
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra"])
@pytest.mark.parametrize("head", ["sequence", "span", "bare"])
def test_every_trainable_parameter_is_in_one_group(architecture, head):
    model = binarize(tiny(architecture, head), BitConfig(1, 2))
    next(model.parameters()).requires_grad_(False)
    listed = [name for names in groups_of(model).values() for name in names]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(listed) == len(set(listed)) and set(listed) == trainable
    assert len(trainable) == len(list(model.parameters())) - 1


def test_what_goes_where():
    model = binarize(tiny(), BitConfig(1, 1))
    groups = groups_of(model)
    assert set(groups["alpha"]) == {f"{name}.alpha" for name in binarizers(model)}
    assert len(groups["alpha"]) == 2 * 10 + 1  # ten a layer, and the pooler's
    assert all(name.endswith((".bias", ".beta")) or ".LayerNorm." in name for name in groups["no_decay"])
    thresholds = {f"{name}.beta" for name, module in binarizers(model).items() if module.beta is not None}
    norms = {name for name, _ in model.named_parameters() if ".LayerNorm." in name}
    assert norms and thresholds | norms <= set(groups["no_decay"])
    assert all(name.endswith(".weight") and ".LayerNorm." not in name for name in groups["decay"])
    assert {"bert.embeddings.word_embeddings.weight", "classifier.weight"} <= set(groups["decay"])


def test_rates_and_decay():
    model = binarize(tiny(), BitConfig(1, 1))
    settings = {g["name"]: (g["lr"], g["weight_decay"]) for g in parameter_groups(model, 3e-4, 0.05, 7e-5)}
    assert settings == {"decay": (3e-4, 0.05), "no_decay": (3e-4, 0.0), "alpha": (7e-5, 0.0)}
    defaults = {g["name"]: (g["lr"], g["weight_decay"]) for g in parameter_groups(model, 3e-4)}
    assert defaults == {"decay": (3e-4, 0.01), "no_decay": (3e-4, 0.0), "alpha": (1e-4, 0.0)}


def test_a_float_model_has_no_alphas_and_a_full_precision_stage_trains_none():
    assert set(groups_of(tiny())) == {"decay", "no_decay"}
    model = set_precision(binarize(tiny(), BitConfig(1, 1)), "W1A32")
    assert set(groups_of(model)) == {"decay", "no_decay"}


def test_a_wrapped_model_is_seen_through():
    model = binarize(tiny(), BitConfig(1, 1))
    wrapped = parameter_groups(nn.DataParallel(model), 1e-3)
    assert [g["params"] for g in wrapped] == [g["params"] for g in parameter_groups(model, 1e-3)]


def released_adam(p, grads, lr, decay):
    """The released program's update in float64 numpy, one gradient after the other."""
    mean, square = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        g = g * min(1.0, 1.0 / (np.sqrt((g**2).sum()) + 1e-6))
        mean = 0.9 * mean + 0.1 * g
        square = 0.999 * square + 0.001 * g**2
        p = p - lr * (mean / (np.sqrt(square) + 1e-6) + decay * p)
    return p


def test_adam_without_correction_against_numpy():
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in ((4, 3), (5,), ())]
    # the first tensor's gradient is clipped by itself, the small ones of the others are not
    grads = [
        [scale * rng.normal(size=p.shape) for p, scale in zip(start, (10.0, 0.01, 0.5), strict=True)] for _ in range(6)
    ]
    parameters = [nn.Parameter(torch.tensor(p)) for p in start]
    frozen = nn.Parameter(torch.ones(2))
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": [*parameters[1:], frozen], "lr": 0.02}]
    optimizer = AdamWithoutCorrection(groups, lr=0.05, weight_decay=0.0)
    for step in grads:
        for p, g in zip(parameters, step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    for i, (lr, decay) in enumerate([(0.05, 0.1), (0.02, 0.0), (0.02, 0.0)]):
        expected = released_adam(start[i], [step[i] for step in grads], lr, decay)
        np.testing.assert_allclose(parameters[i].detach().numpy(), expected, rtol=1e-9)
    assert torch.equal(frozen, torch.ones(2))  # without a gradient nothing moves, decay included


def test_its_state_survives_a_checkpoint():
    def trained(optimizer, p, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (p - 3).square().sum().backward()
            optimizer.step()

    straight = nn.Parameter(torch.zeros(3))
    trained(AdamWithoutCorrection([straight], lr=0.05), straight, 8)
    broken = nn.Parameter(torch.zeros(3))
    first = AdamWithoutCorrection([broken], lr=0.05)
    trained(first, broken, 5)
    second = AdamWithoutCorrection([broken], lr=1.0)
    second.load_state_dict(first.state_dict())
    trained(second, broken, 3)
    assert torch.equal(broken, straight)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("size", [0.01, 100.0])
def test_clipping_in_the_step_is_clipping_before_it(size, dtype, apart):
    """Gradients below and above the norm: the same norm, the same parameters as torch's clipping and AdamW."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3, dtype=dtype)), nn.Parameter(torch.randn(7, dtype=dtype))]
    theirs = copy.deepcopy(ours)
    optimizer, plain = ClippingAdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = size * torch.randn_like(p)
            q.grad = p.grad.clone()
        torch.testing.assert_close(optimizer.clip(1.0), nn.utils.clip_grad_norm_(theirs, 1.0))
        optimizer.step(), plain.step()
        torch.testing.assert_close(ours, theirs, rtol=apart, atol=apart)


@pytest.mark.parametrize("clips", [True, False])
def test_a_sparse_gradient_moves_every_number_as_a_dense_one(clips):
    """Rows looked up now, rows looked up before, which momentum moves on, and rows never looked up, which decay."""
    torch.manual_seed(0)
    ours = nn.Embedding(9, 4)
    theirs = copy.deepcopy(ours)
    optimizer, plain = (ClippingAdamW(table.parameters(), lr=0.1, weight_decay=0.1) for table in (ours, theirs))
    for ids in ([1, 1, 2], [3, 2, 3], [1, 4, 4], [4]):
        for table in (ours, theirs):
            with sparse_rows(table) if table is ours else nullcontext():
                rows = table(torch.tensor(ids))
            (rows * torch.arange(1.0, 1 + len(ids))[:, None]).square().sum().backward()
        assert ours.weight.grad.is_sparse and not theirs.weight.grad.is_sparse
        if clips:
            torch.testing.assert_close(optimizer.clip(1.0), plain.clip(1.0))
        optimizer.step(), plain.step()
        torch.testing.assert_close(ours.weight, theirs.weight)
        optimizer.zero_grad(), plain.zero_grad()
    assert not ours.sparse


def test_a_sparse_gradient_reaches_the_optimizer_out_of_a_closure_and_out_of_two_backwards():
    ours = nn.Embedding(5, 2)
    theirs = copy.deepcopy(ours)
    optimizer, plain = (ClippingAdamW(table.parameters(), lr=0.1) for table in (ours, theirs))

    def loss(table):
        with sparse_rows(table) if table is ours else nullcontext():
            for ids in ([1, 2], [2, 3]):
                table(torch.tensor(ids)).square().sum().backward()
        return torch.zeros(())

    for _ in range(2):
        optimizer.zero_grad(), plain.zero_grad()
        optimizer.step(lambda: loss(ours)), plain.step(lambda: loss(theirs))
        torch.testing.assert_close(ours.weight, theirs.weight)


def test_a_copy_steps_on():
    table = nn.Embedding(5, 2)
    with sparse_rows(table):
        loss = table(torch.tensor([1, 1])).sum()
    loss.backward()
    copied = copy.deepcopy(ClippingAdamW(table.parameters(), lr=0.1))
    (weight,) = copied.param_groups[0]["params"]
    before, weight.grad = weight.detach().clone(), table.weight.grad.clone()
    copied.step()
    assert weight.grad is None and (weight != before).any(1).tolist() == [True] * 5  # the others decay
