"""Parity with the released BiT program: its outputs and gradients on small inputs, kept in tests/golden.

`elastic.npz`, `weights.npz` and `linear.npz` hold single functions and layers, `tiny_bit_w1a1.npz` a whole
student (2 layers, width 32, 4 heads, FFN 64, 100 words, 3 labels), its float teacher, losses and gradients.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from bitlab import BinaryLinear, BitConfig, ElasticBinarizer, binarize
from bitlab.binarizers import binarize_weight, elastic, initial_alpha

SETS = {"signed1": (1, True), "signed2": (2, True), "signed4": (4, True)}
SETS |= {"unsigned1": (1, False), "unsigned2": (2, False), "unsigned4": (4, False)}
RTOL, ALPHA_RTOL = 1e-5, 1e-4


def load(name):
    with np.load(Path(__file__).parent / "golden" / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def near(ours, theirs, rtol=RTOL):
    """Equal to rtol; where sums cancel, to rtol of the tensor's largest element. Their alphas are 0-d, ours (1,)."""
    assert (ours is not None and ours.shape == theirs.shape) or (ours.shape, theirs.shape) == ((1,), ())
    theirs = theirs.view(ours.shape)
    torch.testing.assert_close(ours.detach(), theirs, rtol=rtol, atol=rtol * theirs.abs().max().item())


ELASTIC = load("elastic.npz")
CASES = sorted(key.removesuffix("/y") for key in ELASTIC if key.endswith("/y"))


@pytest.mark.parametrize("case", CASES)
def test_elastic(case):
    seed, inputs, name = case.split("/")
    bits, signed = SETS[name]
    x = ELASTIC[f"{seed}/{inputs}/x"].clone().requires_grad_()
    near(initial_alpha(x, bits, signed), ELASTIC[f"{case}/alpha_init"])

    alpha = ELASTIC[f"{case}/alpha_init"].clone().requires_grad_()
    y = elastic(x, alpha, bits, signed)
    near(y, ELASTIC[f"{case}/y"])
    y.backward(ELASTIC[f"{seed}/grad_out"])
    near(x.grad, ELASTIC[f"{case}/gx"])
    near(alpha.grad, ELASTIC[f"{case}/galpha"], ALPHA_RTOL)


def test_elastic_cases_are_all_there():
    assert len(CASES) == 22 and {case.split("/")[2] for case in CASES} == set(SETS)


@pytest.mark.parametrize("seed", ["s0", "s1"])
@pytest.mark.parametrize("kind", ["layer", "row"])
def test_weight(seed, kind):
    golden = load("weights.npz")
    w = golden[f"{seed}/w"].clone().requires_grad_()
    y = binarize_weight(w, per_row=kind == "row")
    near(y, golden[f"{seed}/bit_bwn/{kind}/y"])
    y.backward(golden[f"{seed}/grad_out"])
    near(w.grad, golden[f"{seed}/bit_bwn/{kind}/gw"])


@pytest.mark.parametrize(
    ("case", "bits", "inputs"), [("sym1", 1, "n1"), ("sym2", 2, "n1"), ("sym4", 4, "n1"), ("uns1", 1, "relu")]
)
def test_linear(case, bits, inputs):
    golden = load("linear.npz")
    expected = {key.split("/")[-1]: value for key, value in golden.items() if f"/bit_{case}/" in key}
    layer = BinaryLinear(48, 24, activation_bits=bits, signed=case != "uns1")
    with torch.no_grad():
        layer.weight.copy_(golden["s0/W"])
        layer.bias.copy_(golden["s0/b"])
        layer.input_binarizer.beta.copy_(-golden["s0/move"])
    x = golden[f"s0/{inputs}/x"].clone().requires_grad_()
    y = layer(x)  # the first batch in training mode: alpha starts here
    near(layer.input_binarizer.alpha, expected["alpha"])
    near(y, expected["y"])

    y.backward(golden["s0/grad_out"])
    near(x.grad, expected["gx"])
    near(layer.weight.grad, expected["gW"])
    near(layer.bias.grad, expected["gb"])
    near(-layer.input_binarizer.beta.grad, expected["gmove"])
    near(layer.input_binarizer.alpha.grad, expected["galpha"], ALPHA_RTOL)


# ------------------------------------------------------------------------------------------ a whole student

GOLDEN = load("tiny_bit_w1a1.npz")
INPUTS = {name: GOLDEN[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
UNLEARNED = ("move_q.bias", "move_k.bias", "move_v.bias")  # zero there; learnable betas of q, k, v here
CLIPS = {"clip_query": "query", "clip_key": "key", "clip_value": "value", "clip_attn": "probs"}


def our_name(theirs):
    """Where a parameter of the released program lives here, and its sign."""
    stem, _, leaf = theirs.rpartition(".")
    if leaf in CLIPS:
        return f"{stem}.{CLIPS[leaf]}_binarizer.alpha", 1
    if leaf == "input_clip_val":
        return f"{stem}.input_binarizer.alpha", 1
    if theirs.endswith(".move.bias"):
        return theirs.replace(".move.bias", ".input_binarizer.beta"), -1
    return theirs, 1


def tiny():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"vocab_size": 100, "max_position_embeddings": 40, "num_labels": 3, "layer_norm_eps": 1e-12}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, attn_implementation="eager"))


def load_parameters(model, prefix):
    """Every parameter that the file names must exist here, and every one of ours must be set by it."""
    ours = dict(model.named_parameters())
    given = {our_name(key.removeprefix(prefix)): value for key, value in GOLDEN.items() if key.startswith(prefix)}
    given = {name: sign * value for (name, sign), value in given.items() if not name.endswith(UNLEARNED)}
    unset = set(ours) - set(given)
    assert all(name.endswith(("query_binarizer.beta", "key_binarizer.beta", "value_binarizer.beta")) for name in unset)
    with torch.no_grad():
        for name, value in given.items():
            ours[name].copy_(value)
    return model


def student():
    model = load_parameters(binarize(tiny(), BitConfig(1, 1)), "param/")
    for module in model.modules():
        if isinstance(module, ElasticBinarizer):  # their alphas are given, not to be initialised again
            module.initialized.fill_(True)
            module.sync()
    return model.train()


def teacher():
    return load_parameters(tiny(), "teacher_param/").eval()


def test_student_forward():
    scores = []
    out = student()(**INPUTS, output_hidden_states=True, attention_scores=scores)
    near(out.logits, GOLDEN["logits"])
    assert len(out.hidden_states) == 3 and len(scores) == 2
    for layer, hidden in enumerate(out.hidden_states):
        near(hidden, GOLDEN[f"hidden/{layer}"])
    keys = (GOLDEN["attention_mask"] == 1)[:, None, None, :]
    for layer, ours in enumerate(scores):  # the file's scores may carry the mask: padded keys are not compared
        theirs = GOLDEN[f"att/{layer}"]
        near(torch.where(keys, ours, 0), torch.where(keys, theirs, 0))


def test_student_losses_and_gradients():
    model = student()
    with torch.no_grad():
        target = teacher()(**INPUTS, output_hidden_states=True)
    near(target.logits, GOLDEN["teacher_logits"])
    out = model(**INPUTS, output_hidden_states=True)

    classes = out.logits.numel()
    loss_ce = -(target.logits.softmax(-1) * out.logits.log_softmax(-1)).sum() / classes
    loss_rep = sum(F.mse_loss(ours, theirs) for ours, theirs in zip(out.hidden_states, target.hidden_states))
    near(loss_ce, GOLDEN["loss_ce"])
    near(loss_rep, GOLDEN["loss_rep"])
    near(loss_ce + loss_rep, GOLDEN["loss"])

    (loss_ce + loss_rep).backward()
    ours = dict(model.named_parameters())
    checked = 0
    for key, theirs in GOLDEN.items():
        if key.startswith("grad/"):
            name, sign = our_name(key.removeprefix("grad/"))
            near(sign * ours[name].grad, theirs, ALPHA_RTOL if name.endswith("alpha") else RTOL)
            checked += 1
    assert checked == sum(key.startswith("grad/") for key in GOLDEN) == 75
