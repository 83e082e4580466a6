"""How encoders name the parts of a layer: a table with one row for each family, and what is read off it.

A new family is one row, if its attention runs through transformers' attention interface.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from bitlab import attention, upstream
from bitlab.errors import BitlabError


class Names(NamedTuple):
    """Where a layer keeps its parts: paths below the layer, those of query, key and value below its attention."""

    attention: str
    projections: tuple[str, str, str]
    out: str
    out_norm: str
    first: str
    activation: str
    second: str
    second_norm: str
    setting: str  # of the model's config: which function the activation is


BERT = Names(
    attention="attention.self",
    projections=("query", "key", "value"),
    out="attention.output.dense",
    out_norm="attention.output.LayerNorm",
    first="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    second="output.dense",
    second_norm="output.LayerNorm",
    setting="hidden_act",
)
FAMILIES = {
    "BERT": BERT,
    "DistilBERT": Names(
        attention="attention",
        projections=("q_lin", "k_lin", "v_lin"),
        out="attention.out_lin",
        out_norm="sa_layer_norm",
        first="ffn.lin1",
        activation="ffn.activation",
        second="ffn.lin2",
        second_norm="output_layer_norm",
        setting="activation",
    ),
    "MPNet": BERT._replace(
        attention="attention.attn",
        projections=("q", "k", "v"),
        out="attention.attn.o",
        out_norm="attention.LayerNorm",
    ),
    "ALBERT": Names(
        attention="attention",
        projections=("query", "key", "value"),
        out="attention.dense",
        out_norm="attention.LayerNorm",
        first="ffn",
        activation="activation",
        second="ffn_output",
        second_norm="full_layer_layer_norm",
        setting="hidden_act",
    ),
}
AROUND = ("pooler", "pooler.dense", "embeddings_project", "encoder.embedding_hidden_mapping_in")  # layers around layers
WORDS = "word_embeddings"
KNOWN = "binarize BERT, RoBERTa, ELECTRA, DistilBERT, MPNet, ALBERT or a relative"


@dataclass(frozen=True)
class LayerParts:
    """The modules of one encoder layer by what they do.

    Attributes:
        name: the layer's own, in the model it was found in.
        names: its family's row.
        layer, attention: the modules that hold the others.
        query, key, value, out: the linear layers around the products of attention.
        first, second: those of the feed-forward.
        out_norm, second_norm: the LayerNorms after `out` and `second`; None where the family has them elsewhere.
    """

    name: str
    names: Names
    layer: nn.Module
    attention: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    first: nn.Module
    second: nn.Module
    out_norm: nn.Module | None
    second_norm: nn.Module | None

    @property
    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.query, self.key, self.value

    @property
    def linears(self) -> tuple[nn.Module, ...]:
        """All six, in the order of the forward pass."""
        return *self.projections, self.out, self.first, self.second

    @property
    def activation(self) -> nn.Module:
        """The feed-forward's activation function."""
        return _below(self.layer, self.names.activation)

    def path(self, part: str) -> str:
        """The full name of a part that stands below the layer: "encoder.layer.0.attention.self" of "attention"."""
        return _join(self.name, getattr(self.names, part))

    def set_activation(self, function: nn.Module) -> None:
        """Give the feed-forward another activation function."""
        holder, _, attribute = self.names.activation.rpartition(".")
        setattr(_below(self.layer, holder), attribute, function)


def layers(model: nn.Module) -> list[LayerParts]:
    """The parts of every encoder layer in a model, float, binary or packed, in the model's order."""
    return [found for name, module in model.named_modules() if (found := layer_parts(module, name))]


def layer_parts(layer: nn.Module, name: str = "") -> LayerParts | None:
    """The parts of an encoder layer, None if the module is none."""
    for names in FAMILIES.values():
        attention = _below(layer, names.attention)
        three = [_below(attention, path) for path in names.projections]
        three += [_below(layer, path) for path in (names.out, names.first, names.second)]
        norms = [_below(layer, path) for path in (names.out_norm, names.second_norm)]
        if all(hasattr(part, "weight") for part in three) and _below(layer, names.activation) is not None:
            return LayerParts(name, names, layer, attention, *three, *norms)
    return None


def _below(module: nn.Module | None, path: str) -> nn.Module | None:
    for attribute in path.split(".") if path else ():
        module = getattr(module, attribute, None)
    return module


class Encoder(NamedTuple):
    """An encoder inside a model, without the head.

    Attributes:
        name: where it stands in the model, "" for the model itself.
        module: it.
        layers: the parts of its layers.
        words: the name of its word embedding in the model.
    """

    name: str
    module: nn.Module
    layers: list[LayerParts]
    words: str

    def linears(self) -> dict[str, nn.Module]:
        """Name in the model and module of the linear layers that binarization takes."""
        found = {}
        for parts in self.layers:
            names = [_join(parts.path("attention"), name) for name in parts.names.projections]
            names += [parts.path(part) for part in ("out", "first", "second")]
            found |= dict(zip(names, parts.linears, strict=True))
        around = {_join(self.name, path): _below(self.module, path) for path in AROUND}
        return found | {name: module for name, module in around.items() if isinstance(module, nn.Linear)}


def find_encoder(model: PreTrainedModel) -> Encoder:
    """The encoder in a model: the smallest module that holds its layers and its word embedding.

    Raises:
        BitlabError: if there is none whose parts are known.
    """
    found = layers(model)
    words = [name for name, module in model.named_modules() if name.split(".")[-1] == WORDS] or _asked_for(model)
    if not found or len(words) != 1:
        raise BitlabError(
            f"{type(model).__name__} is not built as bitlab expects ({len(found)} encoder layers whose parts it knows, "
            f"{len(words)} word embeddings): {KNOWN}"
        )
    paths = [name.split(".") for name in (*words, *(parts.name for parts in found))]
    same = itertools.takewhile(lambda at: len(set(at)) == 1, zip(*(path[:-1] for path in paths)))
    name = ".".join(at[0] for at in same)
    return Encoder(name, model.get_submodule(name), found, words[0])


def _asked_for(model: PreTrainedModel) -> list[str]:
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:
        return []
    return [name for name, module in model.named_modules() if module is words]


def check_convertible(encoder: Encoder) -> None:
    """Refuse an encoder whose layers hold more than the table says, or compute attention by themselves.

    Raises:
        BitlabError: naming the class of the layer. Nothing has been changed.
    """
    for parts in encoder.layers:
        known = {module for linear in parts.linears for module in linear.modules()}
        if any(isinstance(module, nn.Linear) and module not in known for module in parts.layer.modules()):
            raise BitlabError(f"{type(parts.layer).__name__} has more linear layers than bitlab knows there: {KNOWN}")
        if not (upstream.asks_interface(parts.attention) or isinstance(parts.attention, tuple(attention.OWN))):
            raise BitlabError(
                f"{type(parts.attention).__name__} computes attention by itself, not through transformers' attention "
                f"interface, so that it can't be binarized: {KNOWN}"
            )


def collect_attention(model: PreTrainedModel) -> None:
    """Let a float model run `bitlab.attention`, which hands out scores and q, k, v of its layers.

    Raises:
        BitlabError: for MPNet, whose layers don't pass on what is asked of their attention.
    """
    found = layers(model)
    if not all(upstream.asks_interface(parts.attention) for parts in found):
        raise BitlabError(
            f"{type(model).__name__} doesn't hand out what happens in its attention: distil it with attention=0.0 and "
            f"directions=0.0 in its DistillationConfig, by method 'bit'"
        )
    model.set_attn_implementation(attention.NAME)
    for parts in found:
        upstream.use_attention(parts.attention.config, attention.NAME)


def _join(*names: str) -> str:
    return ".".join(filter(None, names))
