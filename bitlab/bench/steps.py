"""A training step that can be called alone, to be timed: plain fine-tuning, or distillation with and without each
measure that makes it fast.

A step is transformers' own: forward, backward, clipping, optimizer. The rows:

    fine-tuning               torch as it comes, float32: 1.0
    fine-tuning, medium       float32 products in their fastest form (`bitlab.compiled.matmul_precision`)
    fine-tuning, bf16         and in mixed precision
    distillation              a W1A1 student and its teacher, with every measure; its forward multiplies int8 codes
    distillation, bf16        and in mixed precision (`--bf16`)
    ..., teacher kept         from the second epoch on: what the teacher says is looked up (`kept_outputs`)
    without ...               with every measure but one
    as released               no measure, and the released program's loss, optimizer and teacher
"""

import copy
import os
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from unittest.mock import patch

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from bitlab import binarizers, compiled
from bitlab.binarizers import binarize_weight
from bitlab.compiled import matmul_precision
from bitlab.config import DistillationConfig
from bitlab.convert import binarize
from bitlab.distillation import DistillationTrainer
from bitlab.distillation.optim import parameter_groups
from bitlab.distillation.teacher_outputs import PLACES, KeptOutputs, kept_outputs
from bitlab.errors import BitlabError
from bitlab.experiments.stage import CPU
from bitlab.layers import BinaryEmbedding

BASELINE = "fine-tuning"
OURS, OURS_BF16 = "distillation", "distillation, bf16"
KEPT, KEPT_BF16 = f"{OURS}, teacher kept", f"{OURS_BF16}, teacher kept"


@dataclass(frozen=True)
class Shape:
    """A BERT encoder and a batch for it; the default is MiniLM's. `heads` have 32 channels each."""

    layers: int = 6
    width: int = 384
    batch: int = 16
    length: int = 128
    vocabulary: int = 30_522

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value < 1:
                raise BitlabError(f"{name} is {value}: it must be 1 or more")
        if self.width % 32 or self.length > 512:
            raise BitlabError("the width must be a multiple of 32, and the length 512 at most")

    def model(self) -> BertForSequenceClassification:
        sizes = {"hidden_size": self.width, "num_attention_heads": self.width // 32}
        sizes |= {"num_hidden_layers": self.layers, "intermediate_size": 4 * self.width}
        return BertForSequenceClassification(BertConfig(vocab_size=self.vocabulary, **sizes))

    def inputs(self, length: int | None = None) -> dict[str, torch.Tensor]:
        """A batch without padding."""
        ids = torch.randint(5, self.vocabulary, (self.batch, length or self.length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(2, (self.batch,))}


MINILM = Shape()


@dataclass(frozen=True)
class Measures:
    """What makes a step fast, each to be left out: see the list at the head of this module."""

    distil: bool = True
    compiled: bool = True
    fast_products: bool = True
    resting_teacher: bool = True
    used_rows: bool = True
    fused_adam: bool = True
    bf16: bool = False
    teacher_kept: bool = False
    released: bool = False


CONTENDERS = {
    BASELINE: Measures(distil=False, fast_products=False),
    "fine-tuning, medium": Measures(distil=False),
    "fine-tuning, bf16": Measures(distil=False, bf16=True),
    OURS: Measures(),
    OURS_BF16: Measures(bf16=True),
    KEPT: Measures(teacher_kept=True),
    KEPT_BF16: Measures(bf16=True, teacher_kept=True),
    "without compiled formulas": Measures(compiled=False),
    "without fast products": Measures(fast_products=False),
    "teacher in training mode": Measures(resting_teacher=False),
    "whole embedding binarized": Measures(used_rows=False),
    "without fused AdamW": Measures(fused_adam=False),
    "as released": Measures(
        compiled=False,
        fast_products=False,
        resting_teacher=False,
        used_rows=False,
        fused_adam=False,
        released=True,
    ),
}


class Step:
    """One training step of a model on `shape`, to be called again and again.

    Args: inputs: the batch; one without padding if None. A call takes another batch in its place.
    """

    def __init__(self, shape: Shape, measures: Measures, inputs: dict | None = None):
        self.measures, self.shape, self.inputs = measures, shape, inputs or shape.inputs()
        model = shape.model()
        teacher = copy.deepcopy(model) if measures.distil else None
        options = TrainingArguments(
            tempfile.gettempdir(), bf16=measures.bf16, report_to=[], use_cpu=CPU, disable_tqdm=True
        )
        if not measures.distil:
            self.trainer = Trainer(model, options)
        else:
            model = binarize(model)
            if not measures.used_rows:
                _binarize_whole_embedding(model)
            loss = DistillationConfig(teacher_dropout=not measures.resting_teacher)
            loss = DistillationConfig.released() if measures.released else loss
            self.trainer = DistillationTrainer(
                model, teacher, options, distillation=loss, released_optimizer=measures.released
            )
            if measures.teacher_kept:
                self.trainer.said = [self._said_by(teacher)]
        self.optimizer = self._optimizer()
        self.trainer.accelerator.prepare_model(model)
        self.trainer.current_gradient_accumulation_steps = 1  # what Trainer.train() would set
        self.model = model

    def _said_by(self, teacher) -> KeptOutputs:
        """As if the data set were one batch of the full length; a shorter batch looks up the first tokens."""
        batch = {name: x for name, x in self.shape.inputs().items() if name != "labels"}
        rows = Dataset.from_dict({name: x.tolist() for name, x in batch.items()})
        outputs = partial(self.trainer.resting_outputs, teacher)
        return kept_outputs(outputs, rows, default_data_collator, self.trainer.args.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.measures.distil and not self.measures.fused_adam and not self.measures.released:
            return torch.optim.AdamW(parameter_groups(self.trainer.model, 5e-5), foreach=False, fused=False)
        return self.trainer.create_optimizer()

    def __call__(self, inputs: dict | None = None) -> torch.Tensor:
        """Returns the loss before the step."""
        with self._environment():
            inputs = dict(inputs or self.inputs)
            if self.measures.teacher_kept:
                inputs[PLACES] = torch.arange(self.shape.batch)
            loss = self.trainer.training_step(self.model, inputs)
            if not self.measures.released:  # that optimizer clips by itself
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    @contextmanager
    def _environment(self):
        with ExitStack() as stack:
            if self.measures.fast_products:
                stack.enter_context(matmul_precision("medium"))
            else:
                stack.enter_context(patch.object(binarizers, "int8_product_takes", lambda a, b: False))
            if not self.measures.compiled:
                stack.enter_context(_uncompiled())
            yield


@contextmanager
def _uncompiled():
    before = os.environ.get(compiled.VARIABLE)
    os.environ[compiled.VARIABLE] = "off"
    try:
        yield
    finally:
        os.environ.pop(compiled.VARIABLE)
        if before is not None:
            os.environ[compiled.VARIABLE] = before


class _WholeEmbedding(BinaryEmbedding):
    def forward(self, ids):
        return F.embedding(ids, binarize_weight(self.weight, per_row=True), self.padding_idx)


def _binarize_whole_embedding(model) -> None:
    for module in model.modules():
        if isinstance(module, BinaryEmbedding):
            module.__class__ = _WholeEmbedding
