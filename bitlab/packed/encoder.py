"""The fused encoder layer: bits from one binarizer to the next, floats in the residual stream and LayerNorm only.

A W1A1 layer of BERT, RoBERTa, ELECTRA or DistilBERT keeps its class, modules and names; `fuse` adds a forward in front
of its own. Where that one does not apply (several bits, an attention output that somebody asks for, a mask that
differs between queries) the layer's own forward runs, on packed weights, with the same results.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import output_capturing

from bitlab.convert import projections
from bitlab.packed import backends, thresholds
from bitlab.packed.layers import PackedLinear, Prepared, Prepares, check_input


@dataclass(frozen=True)
class Parts:
    """The modules of an encoder layer by what they do."""

    attention: nn.Module
    heads: int
    projections: tuple[PackedLinear, ...]
    out: PackedLinear
    out_norm: nn.LayerNorm
    first: PackedLinear
    second: PackedLinear
    second_norm: nn.LayerNorm

    def fusable(self) -> bool:
        linears = (*self.projections, self.out, self.first, self.second)
        if not all(isinstance(linear, PackedLinear) for linear in linears):
            return False
        names = ("query_binarizer", "key_binarizer", "value_binarizer", "probs_binarizer")
        binarizers = [getattr(self.attention, name) for name in names] + [x.input_binarizer for x in linears]
        return all(binarizer.bits == 1 for binarizer in binarizers)


def parts(layer: nn.Module) -> Parts | None:
    """The parts of a BERT-like or DistilBERT layer, or None if it is neither."""
    try:
        if hasattr(layer, "ffn"):
            attention, ffn = layer.attention, layer.ffn
            heads, out, act = attention.n_heads, attention.out_lin, ffn.activation
            rest = (out, layer.sa_layer_norm, ffn.lin1, ffn.lin2, layer.output_layer_norm)
        else:
            attention, output = layer.attention.self, layer.output
            heads, act = attention.num_attention_heads, layer.intermediate.intermediate_act_fn
            if layer.is_decoder or layer.add_cross_attention:
                return None
            after = layer.attention.output
            rest = (after.dense, after.LayerNorm, layer.intermediate.dense, output.dense, output.LayerNorm)
        three = _projections(attention)
        return Parts(attention, heads, three, *rest) if three and isinstance(act, nn.ReLU) else None
    except AttributeError:
        return None


def _projections(attention: nn.Module):
    return projections(attention, PackedLinear)


class Plan:
    """A layer as one backend computes it."""

    def __init__(self, backend, layer: Parts):
        self.backend, self.layer = backend, layer
        width = layer.projections[0].out_features // layer.heads
        heads = (layer.heads, width)
        binarizer = layer.attention
        kinds = (binarizer.query_binarizer, binarizer.key_binarizer, binarizer.value_binarizer)
        self.betas = torch.stack([linear.input_binarizer.beta for linear in layer.projections]).detach()
        self.projections = [
            backend.prepare(linear.spec(thresholds=_thresholds(linear, kind, relu=False), heads_out=heads))
            for linear, kind in zip(layer.projections, kinds, strict=True)
        ]
        q, k, v = (kind.scale() for kind in kinds)
        probs = binarizer.probs_binarizer.scale()
        table = thresholds.exponentials((q * k * binarizer.scaling).item(), width, self.betas.device)
        context = thresholds.after_context(probs * v, layer.out.input_binarizer)
        attention = backends.Attention(*heads, table, probs.item() / 2, context)
        self.attention = backend.prepare_attention(attention)
        self.out = backend.prepare(layer.out.spec(heads_in=heads))
        after = layer.second.input_binarizer
        first = layer.first.spec(thresholds=_thresholds(layer.first, after, relu=True), signed_out=False)
        self.first, self.second = backend.prepare(first), backend.prepare(layer.second.spec())

    def run(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """(batch, length, width) floats and (batch, length) uint8 -> the layer's output, shaped like hidden."""
        backend, layer = self.backend, self.layer
        x = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        codes = backend.signs(x, self.betas)
        q, k, v = (backend.linear(linear, bits) for linear, bits in zip(self.projections, codes, strict=True))
        context = backend.attention(self.attention, q, k, v, keep)
        x = layer.out_norm(backend.linear(self.out, context, residual=x))
        (codes,) = backend.signs(x, layer.first.input_binarizer.beta[None])
        inner = backend.linear(self.first, codes)
        return layer.second_norm(backend.linear(self.second, inner, residual=x)).view(hidden.shape)


def _thresholds(linear: PackedLinear, binarizer, relu: bool) -> Tensor:
    return thresholds.after_linear(linear.scale(), linear.bias, binarizer, linear.in_features, relu)


class Fused(Prepares):
    """In front of an encoder layer's class: its forward on bits, where that applies."""

    @torch.no_grad()
    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        keep = kept_keys(attention_mask, hidden_states)
        if keep is None or self.training or not _plain(args, kwargs):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        check_input(hidden_states)
        device = hidden_states.device
        backend = backends.backend(device)
        return self.prepared.get(backend, device, lambda: Plan(backend, parts(self))).run(hidden_states, keep)

    def __reduce_ex__(self, protocol):
        return _blank, (type(self).__bases__[1],), self.__dict__


def fuse(layer: nn.Module) -> bool:
    """Let a layer run fused if it can. Returns whether it does."""
    found = parts(layer)
    if found is None or not found.fusable():
        return False
    layer.__class__ = _fused(type(layer))
    layer.prepared = Prepared()
    return True


@functools.cache
def _fused(kind: type) -> type:
    return type(f"Fused{kind.__name__}", (Fused, kind), {"__module__": __name__})


def _blank(kind: type) -> nn.Module:
    """A fused layer without contents, for pickle to fill: it finds no class by name that was made at run time."""
    return _fused(kind).__new__(_fused(kind))


def _plain(args: tuple, kwargs: dict) -> bool:
    """Whether a layer is called for its output alone: no cross-attention, cache, attentions, or lists to fill."""
    names = ("encoder_hidden_states", "past_key_values", "attention_scores", "attention_inputs")
    wanted = (*args, *(kwargs.get(name) for name in names))
    collected = output_capturing._active_collector.get()
    return all(value is None for value in wanted) and "attentions" not in (collected or ())


def kept_keys(mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """An additive mask as (batch, length) uint8, 1 for a key that counts; None if it is no such mask.

    Every layer of a model gets the same mask, so what it came to is kept on the tensor.
    """
    batch, length, _ = hidden.shape
    if mask is None:
        return torch.ones(batch, length, dtype=torch.uint8, device=hidden.device)
    if not hasattr(mask, "_bitlab_keep"):
        mask._bitlab_keep = _keep(mask, batch, length)
    return mask._bitlab_keep


def _keep(mask: Tensor, batch: int, length: int) -> Tensor | None:
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[-1] != length or not mask.is_floating_point():
        return None
    open_, closed = mask == 0, mask <= torch.finfo(torch.float16).min
    if not bool((open_ | closed).all()) or not bool((open_ == open_[:, :, :1]).all()):
        return None
    return open_[:, 0, 0].expand(batch, length).to(torch.uint8).contiguous()
