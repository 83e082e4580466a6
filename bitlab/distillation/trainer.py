"""Distillation: a transformers Trainer with the distillation loss and the optimizer's parameter groups.

Source: BiT (Liu et al., 2022, arXiv 2205.13016), "Multi-distilled binary BERT".
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_utils import get_last_checkpoint

from bitlab import compiled
from bitlab.distillation.checks import (
    RELEASED_EPSILON,
    check_apart,
    check_complete,
    check_finite,
    check_settings,
    diverged,
)
from bitlab.distillation.losses import distillation_loss
from bitlab.distillation.optim import AdamWithoutCorrection, ClippingAdamW, parameter_groups, sparse_rows
from bitlab.distillation.sampling import LONG_STRETCH, BucketSampler
from bitlab.distillation.teacher_outputs import MEMORY, PLACES, KeptOutputs, kept_outputs, padding_mask, with_places
from bitlab.encoders import collect_attention, layers
from bitlab.errors import BitlabError
from bitlab.layers import ElasticBinarizer
from bitlab.methods import DistillationConfig

LONG, SMALL = 500, 2**16  # a training of so many steps pays for compiling formulas of so few numbers


def _of_kept_heads(student: nn.Module, scores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A teacher's scores of the heads that are left in a student of half the width (BinaryBERT)."""
    kept = [getattr(parts.attention, "kept_heads", None) for parts in layers(student)]
    if len(kept) != len(scores):
        return scores  # of another depth, which the loss will refuse
    return tuple(s if k is None or len(k) == s.shape[1] else s[:, k] for s, k in zip(scores, kept))


def _has_tokens(rows) -> bool:
    """Whether these are rows whose tokens can be looked up; a Trainer takes any torch data set, or a list of dicts."""
    return isinstance(rows, Dataset) and "input_ids" in rows.column_names


def _require_gradients(student: nn.Module, output: ModelOutput) -> None:
    """Reentrant checkpointing runs layers without gradients at first: what was collected inside would teach nothing."""
    inside = [*output.get("attention_scores", ()), *(query for query, *_ in output.get("attention_inputs", ()))]
    if all(x.requires_grad for x in inside):
        return
    if any(getattr(module, "gradient_checkpointing", False) for module in student.modules()):  # and not just frozen
        raise BitlabError(
            "the loss's attention or direction term has no gradient under reentrant gradient checkpointing: "
            "set gradient_checkpointing_kwargs={'use_reentrant': False} in the TrainingArguments"
        )


class DistillationTrainer(Trainer):
    """A transformers Trainer whose loss is the distillation loss and whose optimizer knows alphas and thresholds.

    Args:
        model: the student. teacher: a model of the same depth and width; a list of them, whose losses are averaged;
            or None to train on the labels.
        args, train_dataset, data_collator, ...: as for `transformers.Trainer`.
        distillation: which terms, how averaged; BiT's if None.
        alpha_learning_rate: learning rate of the alphas (all other parameters follow `args`).
        released_optimizer: Adam without bias correction, gradients clipped to norm 1 per tensor (released program),
            instead of AdamW with the gradient clipped as a whole.
        teacher_memory: bytes in which a teacher's answers on all examples may be kept (11 KB a token of a MiniLM, see
            `bitlab.distillation.teacher_outputs`), if the training sees examples more than once; 0 keeps none. Where
            they need more, the teacher runs in every step. It does so too where an example is not found as it was:
            in data that are no `datasets.Dataset`, or if the collator changes it (masked words).

    A teacher gets no gradients; whether its parameters ask for some is left as it is. The optimizer is AdamW, with the
    groups of `bitlab.distillation.optim.parameter_groups`; for another give `optimizers`. Labels, if the data set has
    them, are used by evaluation and by the loss's hard term only.

    Raises:
        BitlabError: for several GPUs in one process, for a teacher that shares parameters with the student, for
            settings of Trainer that would do nothing here; in training for a checkpoint that lacks a part, for models
            whose outputs do not fit the loss, for a term that has no gradient under reentrant gradient checkpointing,
            and if it diverges.
    """

    # The loss is a mean over the batch already: Trainer must not rescale it under gradient accumulation.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        teacher: PreTrainedModel | list[PreTrainedModel] | None = None,
        args: TrainingArguments | None = None,
        distillation: DistillationConfig | None = None,
        alpha_learning_rate: float = 1e-4,
        released_optimizer: bool = False,
        teacher_memory: int = MEMORY,
        **kwargs,
    ):
        super().__init__(model, args, **kwargs)
        self.teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher or [])
        self.said: list[Callable[[dict], ModelOutput]] = [partial(self.resting_outputs, t) for t in self.teachers]
        self.distillation = distillation or DistillationConfig()
        self.alpha_learning_rate, self.released_optimizer = alpha_learning_rate, released_optimizer
        self.teacher_memory = teacher_memory
        self.terms: dict[str, float] = {}
        check_settings(self, bool(self.teachers), released_optimizer)
        check_apart(self.model, self.teachers)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = self.compute_loss_func is not None  # it is told how many items there are
        self.clipped_norm = self.args.max_grad_norm
        if released_optimizer:  # it clips by itself; the caller's arguments may serve another training
            self.args = copy.copy(self.args)
            self.args.max_grad_norm = 0.0
        for each in self.teachers:
            each.train(self.distillation.teacher_dropout).to(self.args.device)
            if self.distillation.attention or self.distillation.directions:
                collect_attention(each)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.teachers or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = tuple(inputs[name] for name in self.label_names if name in inputs)
        mask, student = padding_mask(inputs), self._outputs(model, inputs)
        problem = self.model.config.problem_type or self.teachers[0].config.problem_type
        _require_gradients(model, student)
        terms: dict[str, Tensor] = {}
        for said in self.said:
            target = said(inputs)
            if "attention_scores" in target:
                target["attention_scores"] = _of_kept_heads(model, target["attention_scores"])
            found = distillation_loss(student, target, mask, self.distillation, labels, problem)
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term / len(self.said)
        self.terms = {name: term.detach() for name, term in terms.items()}
        loss = sum(terms.values())
        return (loss, {"loss": loss, "logits": student.get("logits")}) if return_outputs else loss

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        given = resume_from_checkpoint
        folder = get_last_checkpoint(self.args.output_dir) if given is True else given
        if folder and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # which write files of their own
            check_complete(Path(folder), self.args.process_index if self.args.world_size > 1 else None)
        found = super().train(resume_from_checkpoint, *args, **kwargs)
        check_finite(self.model, self._slower())
        return found

    def training_step(self, model, inputs, *args, **kwargs):
        if self.args.world_size > 1:
            inputs = {"attention_mask": padding_mask(inputs), **inputs}  # from before the padding
            inputs = {name: self._as_long_as_the_others(name, value) for name, value in inputs.items()}
        long = self.state.max_steps >= LONG
        with compiled.worth_it_from(SMALL) if long else nullcontext(), self._sparse_words():
            loss = super().training_step(model, inputs, *args, **kwargs)
        if not loss.isfinite():
            raise diverged(f"the loss of step {self.state.global_step + 1} is {loss.item()}", self._slower())
        parts = self.args.world_size * self.current_gradient_accumulation_steps
        if parts > 1 and self.accelerator.sync_gradients:
            # an alpha's gradient is divided by the root of its batch's size: of the whole batch, not of a part
            for module in model.modules():
                if isinstance(module, ElasticBinarizer) and module.alpha.grad is not None:
                    module.alpha.grad /= parts**0.5
        return loss

    def _slower(self) -> str:
        return f"take lower learning rates ({self.args.learning_rate:g}, of alphas {self.alpha_learning_rate:g})"

    def _as_long_as_the_others(self, name: str, value: Tensor) -> Tensor:
        """Pad to the longest sentence of all processes: alphas start from, and are scaled by, what lies in a batch."""
        fill = {"input_ids": getattr(self.model.config, "pad_token_id", None) or 0, "labels": -100}
        return self.accelerator.pad_across_processes(value.to(self.args.device), dim=1, pad_index=fill.get(name, 0))

    def get_train_dataloader(self):
        collate = self.data_collator
        if kept := self._kept_outputs():
            self.said, self.data_collator = kept, partial(with_places, collate, kept[0].places)
        loader = super().get_train_dataloader()
        self.data_collator = collate
        return loader

    def _kept_outputs(self) -> list[KeptOutputs]:
        """What each teacher says about all examples; nothing if it would not say the same again, or does not fit."""
        d, rows = self.distillation, self.train_dataset
        other_terms = d.teacher_dropout or d.count_padding or d.attention or d.directions
        if other_terms or not self.teacher_memory or not self._come_again(rows):
            return []
        rows, kept = self._remove_unused_columns(rows), []
        for teacher in self.teachers:
            ask = partial(self.resting_outputs, teacher)
            kept.append(kept_outputs(ask, rows, self.data_collator, self.args.device, self.teacher_memory))
            if kept[-1] is None:
                return []
        return kept

    def _come_again(self, rows) -> bool:
        """Whether these are examples to look up by their tokens, and training sees them more than once."""
        if not _has_tokens(rows):
            return False
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        steps = self.args.max_steps
        return 0 < len(rows) < steps * batch if steps > 0 else self.args.num_train_epochs > 1 and len(rows) > 0

    def resting_outputs(self, teacher: nn.Module, inputs: dict) -> ModelOutput:
        """What a teacher says about a batch: logits, and the states that the loss asks for."""
        # autocast would keep a short copy of every weight that may be trained, and each is used once
        with torch.no_grad(), self.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
            return self._outputs(teacher, inputs)

    def _outputs(self, model: nn.Module, inputs: dict) -> ModelOutput:
        wanted = {"attention_scores": self.distillation.attention, "attention_inputs": self.distillation.directions}
        collected = {name: [] for name, weight in wanted.items() if weight}
        states = bool(self.distillation.hidden or self.distillation.directions)
        inputs = {name: value for name, value in inputs.items() if name not in (*self.label_names, PLACES)}
        output = model(**inputs, output_hidden_states=states, **collected)
        for name, found in collected.items():
            output[name] = tuple(found)
        return output

    def _get_train_sampler(self, train_dataset=None):
        args, rows = self.args, self.train_dataset
        stretch = {"random": 1, "group_by_length": LONG_STRETCH}.get(args.train_sampling_strategy)
        if stretch is None or not _has_tokens(rows):
            return super()._get_train_sampler(train_dataset)
        known = args.length_column_name in rows.column_names
        lengths = list(rows[args.length_column_name]) if known else [len(row) for row in rows["input_ids"]]
        seed = args.seed if args.data_seed is None else args.data_seed
        batch = self._train_batch_size * args.world_size
        return BucketSampler(lengths, batch, seed, stretch, args.dataloader_drop_last)

    def _get_eval_sampler(self, eval_dataset):
        return None  # in their order, also where training's is by length: predictions are told by their place

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = parameter_groups(
                model or self.model, self.args.learning_rate, self.args.weight_decay, self.alpha_learning_rate
            )
            if self.released_optimizer:
                self.optimizer = AdamWithoutCorrection(
                    groups, eps=RELEASED_EPSILON, max_norm=self.clipped_norm or math.inf
                )
            else:
                betas = (self.args.adam_beta1, self.args.adam_beta2)
                self.optimizer = ClippingAdamW(groups, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer

    def _clipping_optimizer(self) -> ClippingAdamW | None:
        """Ours, where the gradients reach it as the backward made them."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # inside accelerate's
        whole = self.accelerator.scaler is None and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        return optimizer if whole and isinstance(optimizer, ClippingAdamW) else None

    def _clip_grad_norm(self, model):
        if optimizer := self._clipping_optimizer():
            return optimizer.clip(self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def _sparse_words(self):
        """Let the word table's gradient be the rows of the batch's words: on a CPU, where zeros are dear to write."""
        words = self.model.get_input_embeddings()
        here = isinstance(words, nn.Embedding) and words.weight.device.type == "cpu"
        alone = self.args.world_size == 1 and not self.args.torch_compile
        clips = self.args.max_grad_norm and self._clipping_optimizer()  # else others take the gradient's norm
        return sparse_rows(words) if here and alone and clips else nullcontext()

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {f"loss_{name}": round(float(term), 4) for name, term in self.terms.items()}
        super().log(logs, start_time)
