"""Distillation: the losses, the optimizer's parameter groups, and a transformers Trainer that uses both.

Source: BiT (Liu et al., 2022, arXiv 2205.13016), section 3.4. The student learns the teacher's logits and hidden
states; the labels of the data set are not used.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ModelOutput

from bitlab import attention
from bitlab.baselines.bibert import direction_losses
from bitlab.convert import projections
from bitlab.errors import BitlabError
from bitlab.layers import ElasticBinarizer
from bitlab.optim import AdamWithoutCorrection, parameter_groups
from bitlab.sampling import LONG_STRETCH, BucketSampler
from bitlab.teacher_outputs import MEMORY, ROW, TeacherOutputs, size

LABELS = ("labels", "start_positions", "end_positions")


@dataclass(frozen=True)
class DistillationConfig:
    """What the student learns from, and how each term is averaged.

    Args:
        logits: weight of the soft cross-entropy between teacher and student logits.
        hidden: weight of the mean squared error of the L + 1 hidden states (the embedding output included).
        relative: divide each hidden state's error by the variance of the teacher's, so that all layers count alike.
        attention: weight of the mean squared error of the L attention scores (before mask and softmax).
        hard: weight of the cross-entropy with the data set's labels (BiBERT); a regression has no such term.
        directions: weight of Direction-Matching Distillation (BiBERT), `bitlab.baselines.bibert.direction_losses`.
        temperature: divides both logits in the cross-entropy, which is multiplied by its square.
        per_element: average the cross-entropy over all B C elements instead of the B examples (released program).
        count_padding: let padding count in the hidden-state and attention terms (released program).
        soft_regression: treat a single regression logit like class logits, whose soft cross-entropy is identically
            zero, instead of by mean squared error (released program).
        teacher_dropout: run the teacher in training mode (released program).
    """

    logits: float = 1.0
    hidden: float = 1.0
    relative: bool = False
    attention: float = 0.0
    hard: float = 0.0
    directions: float = 0.0
    temperature: float = 1.0
    per_element: bool = False
    count_padding: bool = False
    soft_regression: bool = False
    teacher_dropout: bool = False

    @classmethod
    def released(cls, **changes) -> "DistillationConfig":
        """The reductions of the released BiT program, faults included."""
        faults = {
            "per_element": True,
            "count_padding": True,
            "soft_regression": True,
            "teacher_dropout": True,
        }
        return cls(**(faults | changes))


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
    config: DistillationConfig = DistillationConfig(),
    labels: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """The weighted terms of the loss, by name; the loss is their sum.

    Args:
        student, teacher: outputs of the two models with `logits` (or `start_logits` and `end_logits`),
            `hidden_states` and, if the attention term is on, `attention_scores` (lists of (B, H, T, T)); if that of
            directions is on, `attention_inputs` (lists of triples (B, H, T, d)).
        mask: (batch, length), 1 for a real token and 0 for padding.
        labels: true classes (or starts and ends of spans), one tensor for each of the logits; for the hard term.
    Returns: dict of 0-d tensors: "logits", "hard", "hidden", "attention", "query", "key", "value", "states", those with
        a weight above 0.
    Errors: BitlabError if the two models' shapes do not fit.
    """
    tokens = None if config.count_padding else mask.to(_logits(student)[0].dtype)
    terms = {}
    if config.logits:
        terms["logits"] = config.logits * _logit_loss(student, teacher, mask, config)
    if config.hard and _logits(student)[0].shape[-1] > 1:
        terms["hard"] = config.hard * _hard_loss(student, labels)
    if config.hidden:
        _check_same("hidden states", student.hidden_states, teacher.hidden_states)
        rows = None if tokens is None else tokens[:, :, None]
        pairs = zip(student.hidden_states, teacher.hidden_states, strict=True)
        scale = partial(variance, mask=rows) if config.relative else lambda t: 1.0
        terms["hidden"] = config.hidden * _share(rows) * sum(masked_mse(s, t, rows) / scale(t) for s, t in pairs)
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
    return (output.logits,) if "logits" in output else (output.start_logits, output.end_logits)


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


def _of_kept_heads(student: nn.Module, scores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A teacher's scores of the heads that are left in a student of half the width (BinaryBERT)."""
    kept = [getattr(module, "kept_heads", None) for module in student.modules() if projections(module)]
    if len(kept) != len(scores):
        return scores  # of another depth, which the loss will refuse
    return tuple(s if k is None or len(k) == s.shape[1] else s[:, k] for s, k in zip(scores, kept))


def _check_same(what: str, student, teacher) -> None:
    shapes = [[tuple(x.shape) for x in side] for side in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise BitlabError(
            f"student and teacher differ in their {what}: {shapes[0][-1]} x {len(shapes[0])} and "
            f"{shapes[1][-1]} x {len(shapes[1])}; distil between models of one architecture"
        )


class DistillationTrainer(Trainer):
    """A transformers Trainer whose loss is the distillation loss and whose optimizer knows alphas and thresholds.

    Args:
        model: the student. teacher: a model of the same depth and width; a list of them, whose losses are averaged;
            or None to train on the labels.
        args, train_dataset, data_collator, ...: as for `transformers.Trainer`.
        distillation: which terms, how averaged.
        alpha_learning_rate: learning rate of the alphas (all other parameters follow `args`).
        released_optimizer: Adam without bias correction, gradients clipped to norm 1 per tensor (released program),
            instead of AdamW with the gradient clipped as a whole.
        teacher_memory: bytes in which a teacher's outputs on all examples may be kept, if the training sees examples
            more than once; where they need more, the teacher runs in every step.

    The optimizer's groups are those of `bitlab.optim.parameter_groups`. Labels, if the data set has them, are used by
    evaluation only.
    """

    # The loss is a mean over the batch already: Trainer must not rescale it under gradient accumulation.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | list[PreTrainedModel] | None = None,
        args: TrainingArguments | None = None,
        distillation: DistillationConfig = DistillationConfig(),
        alpha_learning_rate: float = 1e-4,
        released_optimizer: bool = False,
        teacher_memory: int = MEMORY,
        **kwargs,
    ):
        super().__init__(model, args, **kwargs)
        self.teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher or [])
        self.distillation = distillation
        self.alpha_learning_rate, self.released_optimizer = alpha_learning_rate, released_optimizer
        self.teacher_memory, self.kept = teacher_memory, []
        self.terms: dict[str, float] = {}
        self.model_accepts_loss_kwargs = False
        for each in self.teachers:
            each.requires_grad_(False).train(distillation.teacher_dropout).to(self.args.device)
            if distillation.attention or distillation.directions:
                each.set_attn_implementation(attention.NAME)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.teachers or not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        labels = tuple(inputs[name] for name in LABELS if name in inputs)
        rows = inputs.get(ROW)
        inputs = {k: v for k, v in inputs.items() if k not in (*LABELS, ROW)}
        student = self._outputs(model, inputs)
        terms: dict[str, Tensor] = {}
        for number, teacher in enumerate(self.teachers):
            if rows is None:
                target = self.resting_outputs(teacher, inputs)
            else:
                target = self.kept[number](rows, inputs["attention_mask"])
            if "attention_scores" in target:
                target["attention_scores"] = _of_kept_heads(model, target["attention_scores"])
            found = distillation_loss(student, target, inputs["attention_mask"], self.distillation, labels)
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term / len(self.teachers)
        self.terms = {name: term.detach() for name, term in terms.items()}
        loss = sum(terms.values())
        return (loss, {"loss": loss, "logits": student.get("logits")}) if return_outputs else loss

    def training_step(self, model, inputs, *args, **kwargs):
        if self.args.world_size > 1:
            inputs = {name: self._as_long_as_the_others(name, value) for name, value in inputs.items()}
        loss = super().training_step(model, inputs, *args, **kwargs)
        parts = self.args.world_size * self.args.gradient_accumulation_steps
        if parts > 1 and self.accelerator.sync_gradients:
            # an alpha's gradient is divided by the root of its batch's size: of the whole batch, not of a part
            for module in model.modules():
                if isinstance(module, ElasticBinarizer) and module.alpha is not None and module.alpha.grad is not None:
                    module.alpha.grad /= parts**0.5
        return loss

    def _as_long_as_the_others(self, name: str, value: Tensor) -> Tensor:
        """Pad to the longest sentence of all processes: alphas start from, and are scaled by, what lies in a batch."""
        fill = {"input_ids": getattr(self.model.config, "pad_token_id", None) or 0, "labels": -100}
        return self.accelerator.pad_across_processes(value.to(self.args.device), dim=1, pad_index=fill.get(name, 0))

    def get_train_dataloader(self):
        if self._teachers_say_the_same_again():
            columns = self._remove_unused_columns(self.train_dataset)
            columns = columns.remove_columns([name for name in LABELS if name in columns.column_names])
            self.kept = [
                TeacherOutputs(partial(self.resting_outputs, each), columns, self.data_collator, self.args.device)
                for each in self.teachers
            ]
            self.train_dataset = self.train_dataset.add_column(ROW, range(len(self.train_dataset)))
            self._signature_columns.append(ROW)
        return super().get_train_dataloader()

    def _teachers_say_the_same_again(self) -> bool:
        """Whether the teachers' outputs on all examples are worth keeping, and fit."""
        d, rows = self.distillation, self.train_dataset
        other_terms = d.teacher_dropout or d.count_padding or d.attention or d.directions
        one_row_of_logits = type(self.model).__name__.endswith("ForSequenceClassification")
        if not self.teachers or self.kept or other_terms or not one_row_of_logits or not isinstance(rows, Dataset):
            return False
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        again = self.args.max_steps * batch > len(rows) if self.args.max_steps > 0 else self.args.num_train_epochs > 1
        return again and all(size(each, rows) <= self.teacher_memory for each in self.teachers)

    def resting_outputs(self, teacher: nn.Module, inputs: dict) -> ModelOutput:
        """What a teacher says about a batch: logits, and the states that the loss asks for."""
        with torch.no_grad(), self.accelerator.autocast():
            return self._outputs(teacher, inputs)

    def _outputs(self, model: nn.Module, inputs: dict) -> ModelOutput:
        wanted = {"attention_scores": self.distillation.attention, "attention_inputs": self.distillation.directions}
        collected = {name: [] for name, weight in wanted.items() if weight}
        states = bool(self.distillation.hidden or self.distillation.directions)
        output = model(**inputs, output_hidden_states=states, **collected)
        for name, found in collected.items():
            output[name] = tuple(found)
        return output

    def _get_train_sampler(self, train_dataset=None):
        stretch = {"random": 1, "group_by_length": LONG_STRETCH}.get(self.args.train_sampling_strategy)
        if stretch is not None and "input_ids" in self.train_dataset.column_names:
            lengths = [len(row) for row in self.train_dataset["input_ids"]]
            return BucketSampler(lengths, self._train_batch_size * self.args.world_size, self.args.seed, stretch)
        return super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = parameter_groups(
                model or self.model, self.args.learning_rate, self.args.weight_decay, self.alpha_learning_rate
            )
            if self.released_optimizer:
                self.args.max_grad_norm = 0.0  # this optimizer clips by itself
                self.optimizer = AdamWithoutCorrection(groups)
            else:
                betas = (self.args.adam_beta1, self.args.adam_beta2)
                self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=self.args.adam_epsilon, fused=True)
        return self.optimizer

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {f"loss_{name}": round(float(term), 4) for name, term in self.terms.items()}
        super().log(logs, start_time)
