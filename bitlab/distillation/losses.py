"""What a student learns from: the terms of the distillation loss, and how each is averaged.

Source: BiT (Liu et al., 2022, arXiv 2205.13016), "Multi-distilled binary BERT". The student learns the teacher's
logits and hidden states; the labels of the data set are not used.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from bitlab.errors import BitlabError
from bitlab.layers import mean_over_processes
from bitlab.methods import DistillationConfig
from bitlab.rivals.bibert import direction_losses

BIT = DistillationConfig()
REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"


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
        mask: (..., 1), the examples (or tokens) that count; all if None.
        per_element: also average over the classes, as the released program does (a factor 1 / classes).

    Returns:
        0-d tensor.
    """
    log_p = F.log_softmax(student / temperature, dim=-1)
    loss = -(F.softmax(teacher / temperature, dim=-1) * log_p).sum(-1, keepdim=True)
    return masked_mean(loss, mask) * temperature**2 / (student.shape[-1] if per_element else 1)


def soft_binary_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """`-T^2 mean_ic (p log q + (1 - p) log(1 - q))` with `p = sigmoid(teacher / T)`, `q = sigmoid(student / T)`.

    Each class is a yes or no of its own (multi-label classification), and the mean is over examples and classes, as
    in transformers' loss of labels.

    Args:
        student, teacher: logits (..., classes).
        mask: (..., 1), the examples (or tokens) that count; all if None.

    Returns:
        0-d tensor.
    """
    p = torch.sigmoid(teacher / temperature)
    loss = F.binary_cross_entropy_with_logits(student / temperature, p, reduction="none")
    return masked_mean(loss, mask) * temperature**2


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the elements of `x` that `mask`, broadcast to them, selects; of all if None."""
    return x.mean() if mask is None else (x * mask).sum() / mask.expand_as(x).sum()


def variance(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared distance of `states` (B, T, width) from their mean over the tokens that `mask` (B, T, 1) selects.

    Under several processes, of all of their batches together.
    """
    mask = torch.ones_like(states[..., :1]) if mask is None else mask
    sums = torch.stack([(states * mask).sum((0, 1)), (states.square() * mask).sum((0, 1))])
    mean, square = mean_over_processes(sums) / mean_over_processes(mask.sum())
    return (square - mean.square()).mean()


def distillation_loss(
    student: ModelOutput,
    teacher: ModelOutput,
    mask: Tensor,
    config: DistillationConfig = BIT,
    labels: tuple[Tensor, ...] = (),
    problem: str | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of the loss, by name; the loss is their sum.

    Args:
        student, teacher: outputs of the two models with `logits` (or `start_logits` and `end_logits`),
            `hidden_states` and, if the attention term is on, `attention_scores` (lists of (B, H, T, T)); if that of
            directions is on, `attention_inputs` (lists of triples (B, H, T, d)).
        mask: (batch, length), 1 for a real token and 0 for padding; of multiple choice (batch, choices, length).
        labels: true classes (or starts and ends of spans, or numbers), one tensor for each of the logits; for the hard
            term.
        problem: what the logits are, as in a transformers configuration's `problem_type`: "regression",
            "single_label_classification" or "multi_label_classification". If None it is told as there: one logit is
            a regression, labels that are no whole numbers are several a row.

    Returns:
        dict of 0-d tensors: "logits", "hard", "hidden", "attention", "query", "key", "value", "states", those with
        a weight above 0.

    Raises:
        BitlabError: if the two models' shapes do not fit, if they have no logits and `config` asks for them, or if
            all weights are 0.
    """
    problem = problem or (_problem(student, labels) if config.logits or config.hard else None)
    mask = mask.flatten(0, -2)  # each choice is a row of the hidden states
    first, *_ = student.get("hidden_states") or student.values()  # a bare encoder has no logits
    tokens = None if config.count_padding else mask.to(first.dtype)
    terms = {}
    if config.logits:
        terms["logits"] = config.logits * _logit_loss(student, teacher, mask, config, problem)
    if config.hard:
        terms["hard"] = config.hard * _hard_loss(student, labels, problem)
    if config.hidden:
        rows = None if tokens is None else tokens[:, :, None]
        states = student.hidden_states, teacher.hidden_states
        terms["hidden"] = config.hidden * _layer_loss("hidden states", *states, rows, config.relative)
    if config.attention:
        cells = None if tokens is None else tokens[:, None, :, None] * tokens[:, None, None, :]
        scores = student.attention_scores, teacher.attention_scores
        terms["attention"] = config.attention * _layer_loss("attention scores", *scores, cells)
    if config.directions:
        _check_same("hidden states", student.hidden_states, teacher.hidden_states)
        _check_same("q, k, v", *([x for qkv in side.attention_inputs for x in qkv] for side in (student, teacher)))
        found = direction_losses(student, teacher, None if config.count_padding else mask)
        terms |= {name: config.directions * loss for name, loss in found.items()}
    if not terms:
        raise BitlabError("the loss has no terms: give one of logits, hidden, attention, hard, directions a weight")
    return terms


def _problem(student: ModelOutput, labels: tuple[Tensor, ...]) -> str:
    if _logits(student)[0].shape[-1] == 1:
        return REGRESSION
    return MULTI_LABEL if any(label.is_floating_point() for label in labels) else SINGLE_LABEL


def _hard_loss(student: ModelOutput, labels: tuple[Tensor, ...], problem: str) -> Tensor:
    """As transformers' models compute it from the same labels."""
    if not labels:
        raise BitlabError("the hard-label term of the loss needs labels: give a data set that has them")
    losses = []
    for s, label in zip(_logits(student), labels, strict=True):
        if problem == REGRESSION:
            losses.append(F.mse_loss(s.view(label.shape), label.to(s.dtype)))
        elif problem == MULTI_LABEL:
            losses.append(F.binary_cross_entropy_with_logits(s, label.to(s.dtype)))
        else:
            losses.append(F.cross_entropy(s.movedim(-1, 1), label))  # axis 1 is to hold the classes
    return sum(losses) / len(losses)


def _share(mask: Tensor | None) -> Tensor | float:
    """What this process's mean over `mask` weighs in the mean over all processes' batches; 1 in one process.

    Each process holds a part of the batch with its own number of real tokens, and their losses are averaged.
    """
    if mask is None:
        return 1.0
    return mask.sum() / mean_over_processes(mask.sum())


def _logits(output: ModelOutput) -> tuple[Tensor, ...]:
    if "logits" in output:
        return (output.logits,)
    if "start_logits" in output and "end_logits" in output:
        return output.start_logits, output.end_logits
    raise BitlabError(
        f"the loss finds neither logits nor start_logits and end_logits in a model's output ({', '.join(output)}): "
        f"for a bare encoder or another head set logits=0.0 and hard=0.0 in its DistillationConfig"
    )


def _logit_loss(student: ModelOutput, teacher: ModelOutput, mask: Tensor, config, problem: str) -> Tensor:
    _check_same("logits", _logits(student), _logits(teacher))
    losses = []
    for s, t in zip(_logits(student), _logits(teacher), strict=True):
        real = None
        if "logits" not in student and not config.count_padding:  # a span's ends lie on real tokens
            s, t = (x.masked_fill(mask == 0, torch.finfo(x.dtype).min) for x in (s, t))
        elif s.dim() == 3 and not config.count_padding:  # one decision a token
            real = mask.to(s.dtype)[..., None]
        if problem == REGRESSION and not config.soft_regression:
            loss = masked_mean((s - t).square(), real)  # numbers are no distribution
        elif problem == MULTI_LABEL:
            loss = soft_binary_cross_entropy(s, t, config.temperature, real)
        else:
            loss = soft_cross_entropy(s, t, config.temperature, real, config.per_element)
        losses.append(_share(real) * loss)
    return sum(losses) / len(losses)


def _layer_loss(what: str, student, teacher, mask: Tensor | None, relative: bool = False) -> Tensor:
    """The sum over the layers of mean squared errors; `relative`: of each, over the variance of the teacher's."""
    _check_same(what, student, teacher)
    losses = []
    for s, t in zip(student, teacher, strict=True):
        losses.append(masked_mean((s - t).square(), mask) / (variance(t, mask) if relative else 1))
    return _share(mask) * sum(losses)


def _check_same(what: str, student, teacher) -> None:
    shapes = [[tuple(x.shape) for x in side] for side in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise BitlabError(
            f"student and teacher differ in their {what}: {shapes[0][-1]} x {len(shapes[0])} and "
            f"{shapes[1][-1]} x {len(shapes[1])}; distil between models of one architecture"
        )
