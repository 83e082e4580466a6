"""The private names of transformers and torch still do what bitlab takes them for."""

import pytest
import torch
from tiny_models import tiny
from torch import nn
from transformers import AutoModelForSequenceClassification

from bitlab import upstream


def test_the_product_of_int8_matrices_is_exact():
    a, b = torch.randint(-128, 128, (5, 300), dtype=torch.int8), torch.randint(-64, 65, (300, 4), dtype=torch.int8)
    assert torch.equal(upstream.int8_product(a, b), a.int() @ b.int())


def test_parameters_tell_whether_the_checkpoint_had_them(tmp_path):
    tiny(head="bare").save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert upstream.was_loaded(model.bert.pooler.dense.weight)
    assert not upstream.was_loaded(nn.Parameter(torch.ones(1)))


def test_the_mask_of_eager_attention_is_additive():
    ids = torch.ones(2, 4, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    seen = []
    model = tiny(head="bare")
    model.set_attn_implementation("eager")
    attention = model.encoder.layer[0].attention.self
    attention.register_forward_pre_hook(lambda m, args, kw: seen.append(args[1:] or kw), with_kwargs=True)
    model(input_ids=ids, attention_mask=mask)
    found = next(v for v in (seen[0].values() if isinstance(seen[0], dict) else seen[0]) if isinstance(v, torch.Tensor))
    assert (found[0] == 0).all() and (found[1, ..., 2:] == torch.finfo(found.dtype).min).all()


def test_a_config_names_its_attention_function():
    model = tiny()
    upstream.use_attention(model.config, "bitlab")
    assert upstream.attention_of(model.config) == "bitlab"
    scores = []  # which bitlab's function alone fills
    model(torch.ones(1, 3, dtype=torch.long), attention_scores=scores)
    assert len(scores) == 2


def test_attention_modules_ask_the_interface():
    assert upstream.asks_interface(tiny().bert.encoder.layer[0].attention.self)
    assert not upstream.asks_interface(nn.Linear(1, 1))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_seen(register):
    module = nn.Identity()
    assert not upstream.is_watched(module)
    handle = getattr(module, register)(lambda *_: None)
    assert upstream.is_watched(module)
    handle.remove()
    assert not upstream.is_watched(module)


def test_allocations_are_seen_with_their_sizes():
    def call():
        kept = torch.empty(1000)
        torch.empty(10_000)  # freed at once
        return kept

    found = upstream.allocations(call)
    assert {4_000, 40_000, -40_000} <= set(found)
