"""What flows through a model: statistics of the tensors that its binarizers or linear layers are given."""

import copy
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, BatchEncoding, PreTrainedModel, PrinterCallback, Trainer
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from bitlab.attention import KNOW_BITS, binary_attention
from bitlab.config import BitConfig
from bitlab.convert import binarize
from bitlab.errors import BitlabError
from bitlab.layers import Binarizer


@dataclass(frozen=True)
class Snapshot:
    """One tensor, seen once.

    Attributes:
        mean, std: of the real values that came in.
        positive: share of entries above the threshold: bits that are +1 (codes above zero where there are more bits).
        entropy: of the codes, in bits: 1.0 where both values of a bit are equally frequent, 0.0 where all are the same.
        alpha: the binarizer's scale; None for a linear layer.
        tensor: the real values themselves, detached, if `record(..., keep=True)`.
    """

    mean: float
    std: float
    positive: float
    entropy: float
    alpha: float | None = None
    tensor: Tensor | None = None


@contextmanager
def record(model: nn.Module, kinds=Binarizer, names: str = "", keep: bool = False) -> Iterator[dict]:
    """Watch the inputs of a model's binarizers or layers while the block runs.

    For instance::

        with record(model, names="layer.0") as seen:
            model(**batch)
        seen["bert.encoder.layer.0.attention.self.probs_binarizer"][-1].entropy

    Args:
        model: any module, in training or not.
        kinds: the classes to watch: Binarizer (the input of every binarizer, before its threshold), or for
            instance nn.Linear (there a "bit" is the sign of the input, which is what plain sign would make of it).
        names: watch only modules whose name contains this.
        keep: keep the tensors too (memory: every one of them, every call).

    Yields:
        A dict from module name to its list of Snapshots, one a call, in order. Padding tokens count like others.

    Raises:
        BitlabError: if there is nothing to watch.
    """
    watched = {name: module for name, module in model.named_modules() if isinstance(module, kinds) and names in name}
    if not watched:
        kind = getattr(kinds, "__name__", kinds)
        raise BitlabError(
            f"no {kind} with {names!r} in its name in this {type(model).__name__}: "
            f"binarize the model first, or record kinds=nn.Linear"
        )
    seen: dict[str, list[Snapshot]] = {name: [] for name in watched}
    with ExitStack() as cleanup:
        for name, module in watched.items():
            cleanup.callback(_watch(module, seen[name], keep))
        yield seen


def _watch(module: nn.Module, snapshots: list[Snapshot], keep: bool):
    """Append a Snapshot at every call of the module; returns what undoes it."""

    @torch.no_grad()
    def look(module, inputs, output):
        x, codes, scale = inputs[0], None, None
        if isinstance(module, Binarizer):
            codes, scale = output if isinstance(output, tuple) else module.codes(x)  # layers ask for both
            codes, scale = None if module.bits == 32 else codes, float(scale)
        snapshots.append(snapshot(x, codes, scale, keep))

    return module.register_forward_hook(look).remove


@torch.no_grad()
def snapshot(x: Tensor, codes: Tensor | None = None, alpha: float | None = None, keep: bool = False) -> Snapshot:
    """Statistics of one tensor of any shape, and of its codes (the signs of x if None)."""
    x = x.detach()
    codes = (x >= 0).to(x.dtype) if codes is None else codes.detach()
    shares = torch.unique(codes, return_counts=True)[1].double() / codes.numel()
    return Snapshot(
        mean=x.mean().item(),
        std=x.std(correction=0).item(),
        positive=(codes > 0).double().mean().item(),
        entropy=-(shares * shares.log2()).sum().item() + 0.0,
        alpha=alpha,
        tensor=x.clone() if keep else None,
    )


FIRST_LAYER = {
    "hidden states": "attention.self.query.input_binarizer",
    "queries": "attention.self.query_binarizer",
    "attention probabilities": "attention.self.probs_binarizer",
    "ReLU outputs": "output.dense.input_binarizer",
}


@torch.no_grad()
def first_layer(model: PreTrainedModel, data, examples: int = 64) -> dict[str, Tensor]:
    """Four tensors of a float BERT's first layer that a binary one binarizes, on the CPU.

    They are read off a copy with binarizers that let everything through, and with BiT's ReLU.

    Args:
        model: in float.
        data: a task's tokens, as of `lab.data()`.
        examples: sentences at most, `of_one_length`.
    """
    probe = binarize(copy.deepcopy(model), BitConfig(weight_bits=32, activation_bits=32))
    with record(probe.eval(), names="layer.0.", keep=True) as seen:
        probe(**of_one_length(data, examples).to(probe.device))
    ends = {name: next(n for n in seen if n.endswith("layer.0." + place)) for name, place in FIRST_LAYER.items()}
    return {name: seen[end][-1].tensor.cpu() for name, end in ends.items()}


def of_one_length(data, most: int) -> BatchEncoding:
    """Dev sentences of the commonest length, without their labels: there is no padding among the numbers."""
    dev = next(iter(data.evaluations.values()))
    length = statistics.mode(map(len, dev["input_ids"]))
    batch = data.collate([row for row in dev if len(row["input_ids"]) == length][:most])
    batch.pop("labels")
    return batch


def attend(model: PreTrainedModel, function: Callable) -> PreTrainedModel:
    """Let a model's attention modules call `function(module, query, key, value, mask, scaling, **rest)`.

    Args:
        model: a transformers encoder, float or binary.
        function: query, key and value are (batch, heads, length, head_dim), the mask is additive (0.0 where there is
            nothing to mask). It returns the context, (batch, length, heads, head_dim), and what
            `output_attentions=True` shows.

    Returns:
        The same model.
    """

    def call(module, query, key, value, attention_mask, scaling=None, **rest):
        mask = 0.0 if attention_mask is None else attention_mask
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        context, probs = function(module, query, key, value, mask, scaling, **rest)
        return context.contiguous(), probs

    name = f"course-{id(call)}"
    _ATTENTION[name] = call  # kept, so that no other function gets this name
    AttentionInterface.register(name, call)
    AttentionMaskInterface.register(name, eager_mask)
    KNOW_BITS.add(name)  # or a binary model would refuse to run on it: what it does with bits is the caller's
    model.set_attn_implementation(name)
    return model


_ATTENTION: dict[str, Callable] = {}


class AttentionCall(NamedTuple):
    """What an attention module asks of its attention function: q, k, v are (batch, heads, tokens, head width)."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | float
    scaling: float


@torch.no_grad()
def attention_calls(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[AttentionCall]:
    """The calls of the attention function, one a layer, while a model (float or binary) reads a batch."""
    calls, before = [], model.config._attn_implementation

    def note(module, query, key, value, mask, scaling, **rest):
        calls.append(AttentionCall(module, query, key, value, mask, scaling))
        return binary_attention(module, query, key, value, mask, scaling, **rest)

    attend(model, note)
    try:
        model(**inputs)
    finally:
        model.set_attn_implementation(before)
    return calls


@contextmanager
def follow(model: nn.Module, every: int = 1, **tensors: Tensor) -> Iterator[dict[str, Tensor]]:
    """Note some tensors while a model trains: at every call in training mode, or at every so many.

    For instance::

        with follow(student, weight=layer.weight, alpha=binarizer.alpha) as seen:
            lab.train(student, data, teacher)
        seen["weight"]  # (steps + 1, out, in), from before the first step on

    Yields:
        A dict that holds, after the block, every tensor's history; the last entry is from after the training.
    """
    seen, calls = {name: [] for name in tensors}, count()

    def note(module, inputs):
        if module.training and next(calls) % every == 0:
            for name, tensor in tensors.items():
                seen[name].append(tensor.detach().cpu().clone())

    handle = model.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
        for name, tensor in tensors.items():
            seen[name] = torch.stack([*seen[name], tensor.detach().cpu().clone()])


TENSORS = {  # kinds of tensor that a binary BERT makes one bit, by how their modules' names end
    "nothing (ReLU for GELU)": r"(?!)",
    "FFN-2 inputs": r"\.\d+\.output\.dense\.input_binarizer",
    "out-projection inputs": r"attention\.output\.dense\.input_binarizer",
    "word embedding": r"word_embeddings",
    "FFN-1 inputs": r"intermediate\.dense\.input_binarizer",
    "probabilities": r"probs_binarizer",
    "linear weights": r"\b(query|key|value|dense)",
    "queries, keys, values": r"(query|key|value)_binarizer",
    "q, k, v projection inputs": r"(query|key|value)\.input_binarizer",
}


def one_kind(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """A float BERT made binary in place, but of its tensors only one kind is at one bit, the rest at 32.

    Args:
        model: in float.
        kind: a key of `TENSORS`.
    """
    binarize(model, BitConfig(weight_bits=32, activation_bits=32))
    for name, module in model.base_model.named_modules():
        if re.search(f"{TENSORS[kind]}$", name):
            (module.set_bits if isinstance(module, Binarizer) else module.set_weight_bits)(1)
    return model


_SHORT = {
    "attention.output.dense": "out-projection",
    "intermediate.dense": "FFN-1",
    "output.dense": "FFN-2",
    ".dense": "",
    "attention.self.": "",
    "bert.": "",
    "encoder.": "",
    "input_binarizer": "input",
    "_binarizer": "",
}


def readable(name: str) -> str:
    """A binarizer's name in BERT, short enough for a figure: "layer 0 query", "layer 0 FFN-2 input", "pooler input"."""
    for long, short in _SHORT.items():
        name = name.replace(long, short)
    return name.replace(".", " ")


def training_losses(trainer: Trainer) -> list[float]:
    """Train, and tell the loss of every step, unrounded."""
    losses, step = [], trainer.training_step

    def told(*arguments, **options):
        loss = step(*arguments, **options)
        losses.append(loss.item())
        return loss

    trainer.training_step = told
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return losses
