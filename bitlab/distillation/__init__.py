"""Distillation: the loss, its trainer (a transformers Trainer), the optimizer's groups, batches of similar length."""

from bitlab.config import DistillationConfig
from bitlab.distillation.trainer import DistillationTrainer

__all__ = ["DistillationConfig", "DistillationTrainer"]
