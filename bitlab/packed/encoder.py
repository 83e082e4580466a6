"""The fused encoder: codes from one binarizer to the next, floats in the residual stream, LayerNorm and softmax only.

A binary layer of BERT, RoBERTa, ELECTRA or DistilBERT keeps its class, modules and names; `fuse` adds a forward in
front of its own, and in front of its encoder's, which goes through all layers in one call of the kernel. The kernel
is told where today's tensors lie: nothing is derived from them and kept, so a change of any is seen by the next call.

Padding behind the sentences of a large batch is not computed: a whole encoder takes sentences of like length together
and leaves 0 where a sentence has no more tokens, as attention on unpadded tokens does in transformers.

Where that forward does not apply (no compiler, training, an attention output that somebody asks for, a hook on a
module inside) the module's own runs, on packed weights, with the same results for all tokens.
"""

import functools

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import output_capturing

from bitlab.attention import BinaryMPNetAttention
from bitlab.encoders import LayerParts, layer_parts
from bitlab.layers import ElasticBinarizer
from bitlab.packed import backends
from bitlab.packed.layers import PackedLinear, Source, check_input, point

TOGETHER = 128  # tokens that the kernel takes through all layers at a time, its GROUP
MASKED, COUNTS = -1e30, -1e4  # scores below the first have a probability of exactly 0, if one is above the second


def fusable(layer: nn.Module) -> LayerParts | None:
    """The parts of an encoder layer that can run from codes to codes, None if it can't."""
    parts = layer_parts(layer)
    if parts is None or not all(isinstance(linear, PackedLinear) for linear in parts.linears):
        return None
    decodes = getattr(layer, "is_decoder", False) or getattr(layer, "add_cross_attention", False)
    biased = isinstance(parts.attention, BinaryMPNetAttention)  # scores of every distance of two tokens have their own
    if decodes or biased or not isinstance(parts.activation, nn.ReLU) or parts.out_norm is None:
        return None
    same_norms = parts.out_norm.eps == parts.second_norm.eps
    affine = parts.out_norm.elementwise_affine and parts.second_norm.elementwise_affine
    return parts if same_norms and affine else None


def sources_of(parts: LayerParts) -> list[Source]:
    """What the kernel's `Layer` points to."""
    width, numbers = parts.out.out_features, torch.float32
    found = [source for linear in parts.linears for source in linear.sources()]
    for binarizer in attention_binarizers(parts):
        found.append((binarizer._parameters, "alpha", numbers, 1))
        found.append((binarizer._parameters, "beta", numbers, width))
    for norm in (parts.out_norm, parts.second_norm):
        found += [(norm._parameters, name, numbers, width) for name in ("weight", "bias")]
    return found


def attention_binarizers(parts: LayerParts) -> list[ElasticBinarizer]:
    return [getattr(parts.attention, f"{name}_binarizer") for name in ("query", "key", "value", "probs")]


def sizes_of(parts: LayerParts) -> dict[str, float]:
    """What the kernel's `Sizes` says of a layer."""
    sizes = {"width": parts.out.out_features, "inner": parts.first.out_features}
    sizes["heads"] = parts.out.in_features // parts.attention.attention_head_size
    return sizes | {"scaling": parts.attention.scaling, "eps": parts.out_norm.eps}


def settings_of(parts: LayerParts) -> list[tuple[dict, str]]:
    """Where those of a layer's settings stand that `fusable` and `sizes_of` read."""
    norms = [(norm, name) for norm in (parts.out_norm, parts.second_norm) for name in ("eps", "elementwise_affine")]
    attention = [(parts.attention, name) for name in ("scaling", "attention_head_size")]
    return [(vars(module), name) for module, name in (*norms, *attention, (parts.layer, "is_decoder"))]


class Sources:
    """Where the tensors of layers that follow each other are found. Copies and pickles of a module start without."""

    def __init__(self, layers: list[nn.Module], whole: bool):
        found = [fusable(layer) for layer in layers]
        self.layers, self.first, self.count, self.whole = layers, found[0], len(found), whole
        self.alike = all(sizes_of(parts) == sizes_of(self.first) for parts in found)
        everything = [module for layer in layers for module in layer.modules()]
        passed = [module for module in everything if whole or module not in layers]  # whose forward is not called
        children = [(module._modules, name) for module in everything for name in module._modules]
        settings = [setting for parts in found for setting in settings_of(parts)]
        self.made_of = [(places, name, places.get(name)) for places, name in children + settings]
        self.tensors = [source for parts in found for source in sources_of(parts)]
        self.binarizers = [binarizer for parts in found for binarizer in attention_binarizers(parts)]
        self.binarizers += [linear.input_binarizer for parts in found for linear in parts.linears]
        self.hooks = [hooks for module in passed for hooks in (module._forward_hooks, module._forward_pre_hooks)]

    def of(self, layers: list[nn.Module]) -> bool:
        """Whether these are the layers, still made of the same modules with the same settings."""
        return layers == self.layers and all(places.get(name) is each for places, name, each in self.made_of)

    def bits(self) -> int | None:
        """Bits of all activations; None where they differ, or where somebody hooked into a layer."""
        bits = {binarizer.bits for binarizer in self.binarizers}
        return bits.pop() if self.alike and len(bits) == 1 and bits <= {1, 2, 4, 8} and not self.hooked() else None

    def hooked(self) -> bool:
        """Whether a module that is passed over has a hook, transformers' own excepted."""
        return any(self.hooks) and any(
            hook.__module__ != output_capturing.__name__ for hooks in self.hooks for hook in hooks.values()
        )

    def __deepcopy__(self, memo):
        return None

    def __reduce__(self):
        return type(None), ()


def run(sources: Sources, hidden: Tensor, mask: Tensor | None) -> Tensor | None:
    """(batch, length, width) -> the output of the last layer; None where the kernel does not apply."""
    if not hidden.numel():
        return None  # the float model may not take it
    kernel, bits = backends.compiled_for(hidden), sources.bits()
    found = point(sources.tensors) if kernel and bits else None
    layer, (batch, length, width) = sizes_of(sources.first), hidden.shape
    mask = additive(mask, (batch, layer["heads"], length, length))
    if found is None or mask is False or width != layer["width"]:
        return None
    pointers, _held = found

    def encode(x: Tensor, mask: Tensor | None) -> bool:
        sizes = kernel.sizes(bits, x.shape[0] * x.shape[1], batch=x.shape[0], length=x.shape[1], **layer)
        sizes.mask_example, sizes.mask_head, sizes.mask_query = (0, 0, 0) if mask is None else mask.stride()[:3]
        return kernel.encoder(pointers, sources.count, sizes, x, mask)

    parts = alike(mask) if sources.whole else []
    if len(parts) < 2:
        x = hidden.detach().clone(memory_format=torch.contiguous_format)
        return x if encode(x, mask) else None
    out = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
    for rows, longest in parts:
        x = hidden[rows, :longest].contiguous()
        keys = mask[:, :1, :1, :longest][rows].expand(-1, layer["heads"], longest, longest)
        if not encode(x, keys):
            return None
        out[rows, :longest] = x
    return out


def alike(mask: Tensor | None) -> list[tuple[Tensor, int]]:
    """Sentences of like length in a batch with padding behind them: (rows, length of the longest), longest first.

    Each part has about the tokens that the kernel takes at a time. [] where there is hardly any such padding.
    """
    if mask is None or mask.stride(1) or mask.stride(2):  # a mask for each head or query
        return []
    keys = mask[:, 0, 0]
    count, length = keys.shape
    ends = length - (~(keys < MASKED)).to(torch.int8).flip(1).argmax(1)  # where all keys are masked, all tokens count
    ends[~(keys.gather(1, ends[:, None] - 1)[:, 0] > COUNTS)] = length
    ends.clamp_(min=min(length, backends.softmax_lanes()))  # a shorter softmax adds in another order
    if ends.sum() > 0.9 * keys.numel():  # hardly any padding
        return []
    lengths, order = ends.sort(descending=True, stable=True)
    parts, done = [], 0
    while done < count:
        longest = int(lengths[done])
        most = max(1, TOGETHER // longest) * torch.get_num_threads()
        parts.append((order[done : done + most], longest))
        done += most
    return parts


def additive(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | bool | None:
    """A mask as scores would be added to it: floats of this shape, keys side by side. False if it is none.

    transformers repeats a row of keys for every query; what is the same for all has a stride of 0 here.
    """
    if mask is None:
        return None
    if type(mask) is not Tensor or mask.dtype in (torch.float64, torch.complex64) or mask.device.type != "cpu":
        return False
    try:
        mask = mask.detach().to(torch.float32).expand(shape)
    except RuntimeError:
        return False
    heads = mask[:, : 1 if mask.stride(1) == 0 else None]
    if mask.stride(2) and torch.equal(heads[:, :, 1:], heads[:, :, :-1]):
        mask = mask[:, :, :1].expand(shape)
    return mask if mask.stride(-1) == 1 or shape[-1] == 1 else mask.contiguous()


class Fused:
    """In front of an encoder layer's class, or an encoder's: its forward from codes to codes, where that applies."""

    @torch.no_grad()
    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        found = None
        if not self.training and _plain(args, kwargs):
            check_input(hidden_states)
            found = self._by_kernel(hidden_states, attention_mask)
        return super().forward(hidden_states, attention_mask, *args, **kwargs) if found is None else self._output(found)

    @torch.compiler.disable
    def _by_kernel(self, hidden: Tensor, mask: Tensor | None) -> Tensor | None:
        sources = self.__dict__.get("sources")
        layers = self._layers()
        if sources is None or not sources.of(layers):
            sources = Sources(layers, self.whole) if layers and all(map(fusable, layers)) else None
            self.__dict__["sources"] = sources
        return sources and run(sources, hidden, mask)

    def __reduce_ex__(self, protocol):
        return _blank, type(self).__bases__, self.__dict__


class FusedLayer(Fused):
    whole = False

    def _layers(self) -> list[nn.Module]:
        return [self]

    def _output(self, hidden: Tensor):
        return hidden


class FusedEncoder(Fused):
    whole = True

    def _by_kernel(self, hidden, mask):
        if "hidden_states" in (output_capturing._active_collector.get() or ()):
            return None
        return super()._by_kernel(hidden, mask)

    def _layers(self) -> list[nn.Module]:
        return list(self.layer)

    def _output(self, hidden: Tensor):
        kind = BaseModelOutput if hasattr(self, "n_layers") else BaseModelOutputWithPastAndCrossAttentions
        return kind(last_hidden_state=hidden)


def fuse(model: nn.Module) -> None:
    """Let a model's encoder layers run fused, and encoders of such layers alone as a whole."""
    for module in list(model.modules()):
        if fusable(module):
            module.__class__ = _fused(FusedLayer, type(module))
    for module in list(model.modules()):
        layers = getattr(module, "layer", None)
        if isinstance(layers, nn.ModuleList) and len(layers) and all(isinstance(x, FusedLayer) for x in layers):
            module.__class__ = _fused(FusedEncoder, type(module))


@functools.cache
def _fused(front: type, kind: type) -> type:
    return type(f"Fused{kind.__name__}", (front, kind), {"__module__": __name__})


def _blank(front: type, kind: type) -> nn.Module:
    """A fused module without contents, for pickle to fill: it finds no class by name that was made at run time."""
    return _fused(front, kind).__new__(_fused(front, kind))


def _plain(args: tuple, kwargs: dict) -> bool:
    """Whether a layer is called for its output alone: no cross-attention, cache, attentions, or lists to fill."""
    names = ("encoder_hidden_states", "cache", "past_key_values", "attention_scores", "attention_inputs")
    wanted = (*args, *(kwargs.get(name) for name in names))
    collected = output_capturing._active_collector.get()
    return all(value is None for value in wanted) and "attentions" not in (collected or ())
