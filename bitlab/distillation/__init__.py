"""Distillation: the loss, its trainer (a transformers Trainer), the optimizer's groups, batches of similar length."""

from bitlab.distillation.trainer import DistillationTrainer
from bitlab.methods import DistillationConfig

__all__ = ["DistillationConfig", "DistillationTrainer"]
