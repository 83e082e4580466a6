"""The private names of transformers and torch that bitlab relies on, in one place.

tests/test_upstream.py holds each to what we take it for, so that an upgrade tells. Methods of Trainer that begin with
an underscore and that ours overrides stay in `bitlab.distillation.trainer`.
"""

import inspect
import os
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface, eager_mask

__all__ = ["AttentionMaskInterface", "eager_mask"]


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two int8 matrices, in int32; exact for b within -64 and 64.

    oneDNN, without VNNI, adds two products in 16 bits, where 255 * 65 * 2 has no room. Ours are of one-bit weights, or
    of codes of up to 4 bits.
    """
    return torch._int_mm(a, b)


def was_loaded(parameter: nn.Parameter) -> bool:
    """Whether the checkpoint that is being loaded had this parameter; if not, it is memory as it was found."""
    return getattr(parameter, "_is_hf_initialized", False)


def asks_interface(module: nn.Module) -> bool:
    """Whether an attention module looks its function up where `AttentionInterface.register` puts it."""
    return "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(type(module).forward).__code__.co_names


def use_attention(config: PretrainedConfig, name: str) -> None:
    """Set a config's attention function, also of a model class of one's own, for which transformers only warns."""
    config._attn_implementation = name


def attention_of(config: PretrainedConfig) -> str:
    """The name of a config's attention function."""
    return config._attn_implementation


def is_watched(module: nn.Module) -> bool:
    """Whether somebody has registered a forward hook on this module, so that it must be called to be seen."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def allocations(call: Callable[[], object]) -> list[int]:
    """Bytes of each tensor that a call allocates on a CPU (above 0) or frees (below), in the order of time."""
    with _silent_errors(), torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@contextmanager
def _silent_errors():
    """Keep what is written past Python, the profiler's own lines, off standard error."""
    copy, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(copy, 2)
        os.close(nowhere), os.close(copy)
