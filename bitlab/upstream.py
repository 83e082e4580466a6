"""The private names of transformers and torch that bitlab relies on, in one place.

tests/test_upstream.py holds each to what we take it for, so that an upgrade tells. Methods of Trainer that begin with
an underscore and that ours overrides stay in `bitlab.distillation.trainer`.
"""

import inspect

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask

__all__ = ["AttentionMaskInterface", "eager_mask"]


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """The exact product of two int8 matrices, in int32."""
    return torch._int_mm(a, b)


def was_loaded(parameter: nn.Parameter) -> bool:
    """Whether the checkpoint that is being loaded had this parameter; if not, it is memory as it was found."""
    return getattr(parameter, "_is_hf_initialized", False)


def asks_interface(module: nn.Module) -> bool:
    """Whether an attention module looks its function up where `AttentionInterface.register` puts it."""
    return "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(type(module).forward).__code__.co_names
