"""Distillation: a transformers Trainer with the distillation loss and the optimizer's parameter groups.

Source: BiT (Liu et al., 2022, arXiv 2205.13016), "Multi-distilled binary BERT".
"""

from functools import partial

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ModelOutput

from bitlab import attention
from bitlab.config import DistillationConfig
from bitlab.convert import projections
from bitlab.distillation.losses import distillation_loss
from bitlab.distillation.optim import AdamWithoutCorrection, parameter_groups
from bitlab.distillation.sampling import LONG_STRETCH, BucketSampler
from bitlab.distillation.teacher_outputs import MEMORY, ROW, NamingCollator, TeacherOutputs, padding_mask, size
from bitlab.errors import BitlabError
from bitlab.layers import ElasticBinarizer

LABELS = ("labels", "start_positions", "end_positions")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")  # values of `args.optim` that say what is done here


def _of_kept_heads(student: nn.Module, scores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A teacher's scores of the heads that are left in a student of half the width (BinaryBERT)."""
    kept = [getattr(module, "kept_heads", None) for module in student.modules() if projections(module)]
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
        teacher_memory: bytes in which a teacher's outputs on all examples may be kept, if the training sees examples
            more than once; where they need more, the teacher runs in every step. It does so too where an example is
            not found as it was: in data that are no `datasets.Dataset`, or if the collator changes it (masked words).

    A teacher gets no gradients; whether its parameters ask for some is left as it is. The optimizer is AdamW, with the
    groups of `bitlab.distillation.optim.parameter_groups`; for another give `optimizers`. Labels, if the data set has
    them, are used by evaluation only.

    Errors: BitlabError for several GPUs in one process, and in training for another `args.optim`, for models whose
        outputs do not fit the loss, and for a term that has no gradient under reentrant gradient checkpointing.
    """

    # The loss is a mean over the batch already: Trainer must not rescale it under gradient accumulation.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | list[PreTrainedModel] | None = None,
        args: TrainingArguments | None = None,
        distillation: DistillationConfig | None = None,
        alpha_learning_rate: float = 1e-4,
        released_optimizer: bool = False,
        teacher_memory: int = MEMORY,
        **kwargs,
    ):
        super().__init__(model, args, **kwargs)
        if self.args.n_gpu > 1:
            raise BitlabError(
                f"one process sees {self.args.n_gpu} GPUs, and would give parts of a batch to copies of the model: "
                f"start it with torchrun, one process a GPU, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        self.teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher or [])
        self.distillation = distillation or DistillationConfig()
        self.alpha_learning_rate, self.released_optimizer = alpha_learning_rate, released_optimizer
        self.teacher_memory, self.kept = teacher_memory, []
        self.terms: dict[str, float] = {}
        self.model_accepts_loss_kwargs = False
        for each in self.teachers:
            each.train(self.distillation.teacher_dropout).to(self.args.device)
            if self.distillation.attention or self.distillation.directions:
                each.set_attn_implementation(attention.NAME)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.teachers or not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        labels = tuple(inputs[name] for name in LABELS if name in inputs)
        rows, mask = inputs.get(ROW), padding_mask(inputs)
        student = self._outputs(model, inputs)
        _require_gradients(model, student)
        terms: dict[str, Tensor] = {}
        for number, teacher in enumerate(self.teachers):
            if rows is None:
                target = self.resting_outputs(teacher, inputs)
            else:
                target = self.kept[number](rows, mask)
            if "attention_scores" in target:
                target["attention_scores"] = _of_kept_heads(model, target["attention_scores"])
            found = distillation_loss(student, target, mask, self.distillation, labels)
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term / len(self.teachers)
        self.terms = {name: term.detach() for name, term in terms.items()}
        loss = sum(terms.values())
        return (loss, {"loss": loss, "logits": student.get("logits")}) if return_outputs else loss

    def training_step(self, model, inputs, *args, **kwargs):
        if self.args.world_size > 1:
            inputs = {"attention_mask": padding_mask(inputs), **inputs}  # from before the padding
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
            kept = [
                TeacherOutputs(partial(self.resting_outputs, each), columns, self.data_collator, self.args.device)
                for each in self.teachers
            ]
            if all(each.complete for each in kept):
                self.kept, self.data_collator = kept, NamingCollator(self.data_collator)
                self.train_dataset = self.train_dataset.add_column(ROW, range(len(self.train_dataset)))
                self._set_signature_columns_if_needed()
                self._signature_columns.append(ROW)
        return super().get_train_dataloader()

    def _teachers_say_the_same_again(self) -> bool:
        """Whether the teachers' outputs on all examples are worth keeping, and fit."""
        d, rows = self.distillation, self.train_dataset
        if not _has_tokens(rows) or rows.format["type"] == "custom":  # a function that may draw at random
            return False
        other_terms = d.teacher_dropout or d.count_padding or d.attention or d.directions
        one_row_of_logits = type(self.model).__name__.endswith("ForSequenceClassification")
        if not self.teachers or self.kept or other_terms or not one_row_of_logits:
            return False
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        again = self.args.max_steps * batch > len(rows) if self.args.max_steps > 0 else self.args.num_train_epochs > 1
        return again and all(size(each, rows) <= self.teacher_memory for each in self.teachers)

    def resting_outputs(self, teacher: nn.Module, inputs: dict) -> ModelOutput:
        """What a teacher says about a batch: logits, and the states that the loss asks for."""
        # autocast would keep a short copy of every weight that may be trained, and each is used once
        with torch.no_grad(), self.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
            return self._outputs(teacher, inputs)

    def _outputs(self, model: nn.Module, inputs: dict) -> ModelOutput:
        wanted = {"attention_scores": self.distillation.attention, "attention_inputs": self.distillation.directions}
        collected = {name: [] for name, weight in wanted.items() if weight}
        states = bool(self.distillation.hidden or self.distillation.directions)
        inputs = {name: value for name, value in inputs.items() if name not in (*LABELS, ROW)}
        output = model(**inputs, output_hidden_states=states, **collected)
        for name, found in collected.items():
            output[name] = tuple(found)
        return output

    def _get_train_sampler(self, train_dataset=None):
        stretch = {"random": 1, "group_by_length": LONG_STRETCH}.get(self.args.train_sampling_strategy)
        if stretch is not None and _has_tokens(self.train_dataset):
            lengths = [len(row) for row in self.train_dataset["input_ids"]]
            return BucketSampler(lengths, self._train_batch_size * self.args.world_size, self.args.seed, stretch)
        return super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            if self.args.optim not in OPTIMIZERS or self.optimizer_cls_and_kwargs:
                raise BitlabError(
                    f"optim={self.args.optim.value!r} or optimizer_cls_and_kwargs would not be used, "
                    f"DistillationTrainer has an AdamW of its own: leave them alone, or give optimizers=(yours, None)"
                )
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
