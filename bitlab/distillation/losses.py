"""What a student learns from: the terms of the distillation loss, and how each is averaged.

Source: BiT (Liu et al., 2022, arXiv 2205.13016), "Multi-distilled binary BERT". The student learns the teacher's
logits and hidden states; the labels of the data set are not used.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from bitlab.config import DistillationConfig
from bitlab.errors import BitlabError
from bitlab.rivals.bibert import direction_losses

BIT = DistillationConfig()


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    per_element: bool = False,
) -> Tensor:
    """`-T^2 mean_i sum_c softmax(teacher / T)_ic log softmax(student / T)_ic`, natural logarithm.

    Args:
        student, teacher: logits (..., classes).
        mask: (...), the examples (or tokens) that count; all if None.
        per_element: also average over the classes, as the released program does (a factor 1 / classes).
    Returns: 0-d tensor.
    """
    log_p = F.log_softmax(student / temperature, dim=-1)
    loss = -(F.softmax(teacher / temperature, dim=-1) * log_p).sum(-1)
    loss = loss.mean() if mask is None else (loss * mask).sum() / mask.sum()
    return loss * temperature**2 / (student.shape[-1] if per_element else 1)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of `(student - teacher)^2` over the elements that `mask`, broadcast to them, selects; all if None."""
    if mask is None:
        return F.mse_loss(student, teacher)
    error = (student - teacher).square().mul(mask)
    return error.sum() / mask.expand_as(student).sum()


def variance(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared distance of `states` (B, T, width) from their mean over the tokens that `mask` (B, T, 1) selects.

    Under several processes, of all of their batches together.
    """
    mask = torch.ones_like(states[..., :1]) if mask is None else mask
    sums = torch.stack([(states * mask).sum((0, 1)), (states.square() * mask).sum((0, 1))])
    count = mask.sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
        dist.all_reduce(count)
    mean, square = sums / count
    return (square - mean.square()).mean()


def distillation_loss(
    student: ModelOutput,
    teacher: ModelOutput,
    mask: Tensor,
    config: DistillationConfig = BIT,
    labels: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """The weighted terms of the loss, by name; the loss is their sum.

    Args:
        student, teacher: outputs of the two models with `logits` (or `start_logits` and `end_logits`),
            `hidden_states` and, if the attention term is on, `attention_scores` (lists of (B, H, T, T)); if that of
            directions is on, `attention_inputs` (lists of triples (B, H, T, d)).
        mask: (batch, length), 1 for a real token and 0 for padding; of multiple choice (batch, choices, length).
        labels: true classes (or starts and ends of spans), one tensor for each of the logits; for the hard term.
    Returns: dict of 0-d tensors: "logits", "hard", "hidden", "attention", "query", "key", "value", "states", those with
        a weight above 0.
    Errors: BitlabError if the two models' shapes do not fit, or if they have no logits and `config` asks for them.
    """
    mask = mask.flatten(0, -2)  # each choice is a row of the hidden states
    first, *_ = student.get("hidden_states") or student.values()  # a bare encoder has no logits
    tokens = None if config.count_padding else mask.to(first.dtype)
    terms = {}
    if config.logits:
        terms["logits"] = config.logits * _logit_loss(student, teacher, mask, config)
    if config.hard and _logits(student)[0].shape[-1] > 1:
        terms["hard"] = config.hard * _hard_loss(student, labels)
    if config.hidden:
        _check_same("hidden states", student.hidden_states, teacher.hidden_states)
        rows = None if tokens is None else tokens[:, :, None]
        pairs = zip(student.hidden_states, teacher.hidden_states, strict=True)
        errors = (masked_mse(s, t, rows) / (variance(t, rows) if config.relative else 1) for s, t in pairs)
        terms["hidden"] = config.hidden * _share(rows) * sum(errors)
    if config.attention:
        _check_same("attention scores", student.attention_scores, teacher.attention_scores)
        cells = None if tokens is None else tokens[:, None, :, None] * tokens[:, None, None, :]
        pairs = zip(student.attention_scores, teacher.attention_scores, strict=True)
        terms["attention"] = config.attention * _share(cells) * sum(masked_mse(s, t, cells) for s, t in pairs)
    if config.directions:
        _check_same("hidden states", student.hidden_states, teacher.hidden_states)
        _check_same("q, k, v", *([x for qkv in side.attention_inputs for x in qkv] for side in (student, teacher)))
        found = direction_losses(student, teacher, None if config.count_padding else mask)
        terms |= {name: config.directions * loss for name, loss in found.items()}
    return terms


def _hard_loss(student: ModelOutput, labels: tuple[Tensor, ...]) -> Tensor:
    if not labels:
        raise BitlabError("the hard-label term of the loss needs labels: give a data set that has them")
    pairs = zip(_logits(student), labels, strict=True)  # axis 1 of the logits is to hold the classes
    return sum(F.cross_entropy(s.movedim(-1, 1), label) for s, label in pairs) / len(labels)


def _share(mask: Tensor | None) -> Tensor | float:
    """What this process's mean over `mask` weighs in the mean over all processes' batches; 1 in one process.

    Each process holds a part of the batch with its own number of real tokens, and their losses are averaged.
    """
    if mask is None or not (dist.is_available() and dist.is_initialized()):
        return 1.0
    count = mask.sum()
    total = count.clone()
    dist.all_reduce(total)
    return count * dist.get_world_size() / total


def _logits(output: ModelOutput) -> tuple[Tensor, ...]:
    if "logits" in output:
        return (output.logits,)
    if "start_logits" in output and "end_logits" in output:
        return output.start_logits, output.end_logits
    raise BitlabError(
        f"the loss finds neither logits nor start_logits and end_logits in a model's output ({', '.join(output)}): "
        f"for a bare encoder or another head set logits=0.0 and hard=0.0 in its DistillationConfig"
    )


def _logit_loss(student, teacher, mask, config) -> Tensor:
    _check_same("logits", _logits(student), _logits(teacher))
    losses = []
    for s, t in zip(_logits(student), _logits(teacher), strict=True):
        if s.shape[-1] == 1 and not config.soft_regression:
            losses.append(F.mse_loss(s, t))  # one number is no distribution
            continue
        per_token = None
        if "logits" not in student and not config.count_padding:  # a span's ends lie on real tokens
            s, t = (x.masked_fill(mask == 0, torch.finfo(x.dtype).min) for x in (s, t))
        elif s.dim() == 3 and not config.count_padding:  # one decision a token
            per_token = mask.to(s.dtype)
        loss = soft_cross_entropy(s, t, config.temperature, per_token, config.per_element)
        losses.append(_share(per_token) * loss)
    return sum(losses) / len(losses)


def _check_same(what: str, student, teacher) -> None:
    shapes = [[tuple(x.shape) for x in side] for side in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise BitlabError(
            f"student and teacher differ in their {what}: {shapes[0][-1]} x {len(shapes[0])} and "
            f"{shapes[1][-1]} x {len(shapes[1])}; distil between models of one architecture"
        )
