"""What a model costs: parameters, bits and floating-point operations, read off its modules without a run.

Bits: a 1-bit weight is one bit, a ternary one two; everything else that inference needs is a 32-bit float,
including what binarization adds: `alpha`, `beta`, the weight scales `m` (one a layer, one a row of the word embedding).
So is a weight that a float layer uses too: the word embedding of a language model whose output layer is tied to it.

FLOPs of products, by the papers' convention: a multiply-accumulate is 2; of operands with b_w and b_a bits
it counts `b_w b_a / 64` of that (a machine word holds 64 bits), at most 1. A 1-bit weight times a float is
then a half: the additions without the multiplications. The papers count the two products of attention so,
too, with b_w = 1, although both operands have b_a bits: `flops` follows them, `strict_flops` counts
b_a b_a / 64.

FLOPs of the part that stays float, which the papers do not itemise; counted here per element: LayerNorm 7
(mean, difference, square, sum, rescale, gain, offset), the residual before it 1, softmax 5 (maximum,
difference, exponential, sum, quotient), its scale and mask 1 each, bias 1, rescaling a product of bits 1,
an embedding 1 (summing it up, or scaling its sign), ReLU and tanh 1, GELU 5, and a binarizer 1: a
comparison with a threshold, counted once whatever its bits. For BERT-base at length 128 that is 0.08 G,
hence 22.35 / 64 + 0.08 = 0.43 G for W1A1, 0.78 for W1A2, 1.48 for W1A4. The float model comes to 22.35 +
0.07 = 22.42 G; the papers print 22.5 without a derivation.

Source: the tables of BiT (arXiv 2205.13016) and BinaryBERT (arXiv 2012.15701).
"""

from dataclasses import astuple, dataclass, replace
from functools import reduce
from operator import add

from torch import Tensor, nn
from transformers import PreTrainedModel

from bitlab.encoders import LayerParts, find_encoder
from bitlab.errors import check_number
from bitlab.layers import Binarizer, BinaryLinear
from bitlab.terminal.text import aligned

MIB = 8 * 2**20  # bits
WORD = 64
FLOAT = 32
LAYERNORM, RESIDUAL, SOFTMAX, GELU = 7, 1, 5, 5


@dataclass(frozen=True)
class Cost:
    """One entry: so many numbers of one kind in one part of the model, and the operations they cause.

    Added to another: of the part, or kind, that both are of.
    """

    part: str
    kind: str
    one_bit_parameters: int = 0
    two_bit_parameters: int = 0
    float_parameters: int = 0
    matmul_flops: float = 0.0
    strict_matmul_flops: float = 0.0
    elementwise_flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = astuple(self), astuple(other)
        names = (a if a == b else "" for a, b in zip(mine[:2], theirs[:2]))
        return Cost(*names, *map(add, mine[2:], theirs[2:]))

    @property
    def parameters(self) -> int:
        """Numbers to keep, of any width."""
        return self.one_bit_parameters + self.two_bit_parameters + self.float_parameters

    @property
    def bits(self) -> int:
        return self.one_bit_parameters + 2 * self.two_bit_parameters + FLOAT * self.float_parameters

    @property
    def mib(self) -> float:
        """Size in MiB (2^20 bytes)."""
        return self.bits / MIB

    @property
    def flops(self) -> float:
        """Operations by the papers' convention, the float part included."""
        return self.matmul_flops + self.elementwise_flops

    @property
    def strict_flops(self) -> float:
        """As `flops`, with b_a b_a / 64 for the products of attention."""
        return self.strict_matmul_flops + self.elementwise_flops


class Summary:
    """The cost of a model: printed, a table of its parts; in a notebook, the same as HTML.

    Attributes: `parts` (embeddings, each layer, pooler, head) and `kinds` (1-bit weights, biases, ...), both
    dictionaries of `Cost`; `total`, whose numbers are also here: `parameters`, `one_bit_parameters`,
    `two_bit_parameters` (ternary weights), `float_parameters`, `total_bits`, `mib`, `flops`, `matmul_flops`,
    `elementwise_flops`, `strict_flops`.
    """

    def __init__(self, entries: list[Cost], length: int, batch: int):
        self.length, self.batch = length, batch
        self.parts = _grouped(entries, "part")
        self.kinds = _grouped(entries, "kind")
        self.total = replace(reduce(add, entries), part="total")

    def __getattr__(self, name: str):
        if name.startswith("_") or name == "total":
            raise AttributeError(name)
        return getattr(self.total, name)

    @property
    def total_bits(self) -> int:
        return self.total.bits

    def compare(self, other: "Summary") -> dict[str, float]:
        """How many times smaller and cheaper this model is than `other`: {"size": ..., "flops": ...}."""
        return {"size": other.mib / self.mib, "flops": other.flops / self.flops}

    def _table(self) -> list[list[str]]:
        head = ["part", "parameters", "1 bit", "bits", "MiB", "GFLOPs"]
        rows = [head]
        for c in (*self.parts.values(), self.total):
            counts = [f"{number:,}" for number in (c.parameters, c.one_bit_parameters, c.bits)]
            rows.append([c.part, *counts, f"{c.mib:.2f}", f"{c.flops / 1e9:.3f}"])
        return rows

    def __str__(self) -> str:
        head, *parts, total = aligned(self._table())
        rule = "-" * len(head)
        return "\n".join([head, rule, *parts, rule, total, self._caption()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        cells = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
        cells += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
        return f"<table>{''.join(cells)}<caption>{self._caption()}</caption></table>"

    def _caption(self) -> str:
        return f"FLOPs for a batch of {self.batch} at length {self.length}, by the papers' convention"


def summary(model: PreTrainedModel, length: int = 128, batch: int = 1) -> Summary:
    """Count parameters, bits and FLOPs of an encoder, float or binary, on any device (the meta device too).

    Args:
        model: an encoder that `binarize` knows, with any head or none, at any precision.
        length: tokens of a sentence, padding included.
        batch: sentences; the FLOPs are of the whole batch.

    Returns:
        A `Summary`; print it, or read `.mib` and `.flops`.

    Raises:
        BitlabError: if length or batch is below 1, or the model is no encoder that bitlab knows.
    """
    check_number("length", length, at_least=1, whole=True)
    check_number("batch", batch, at_least=1, whole=True)
    return Summary(_Counter(model, length, batch).entries, length, batch)


class _Counter:
    """Walks the modules and collects entries; a tensor that two modules share is stored once, used twice."""

    def __init__(self, model: PreTrainedModel, length: int, batch: int):
        self.entries: list[Cost] = []
        self.stored: set[int] = set()
        floats = (module for module in model.modules() if getattr(module, "weight_bits", FLOAT) == FLOAT)
        self.floats = {id(tensor) for layer in floats for tensor in layer.parameters(recurse=False)}
        encoder = find_encoder(model)
        self.words = model.get_submodule(encoder.words)
        # how often each layer is run: once, but for ALBERT, which keeps fewer than it runs
        inner = getattr(model.config, "inner_group_num", 1)
        self.length, self.runs = length, model.config.num_hidden_layers * inner // len(encoder.layers)
        self.attentions = {parts.attention: parts for parts in encoder.layers}
        self.part = dict.fromkeys(encoder.module.modules(), "embeddings")
        self.part |= {m: "pooler" for name, m in encoder.module.named_modules() if name.startswith("pooler")}
        for number, parts in enumerate(encoder.layers):
            self.part |= dict.fromkeys(parts.layer.modules(), f"layer {number}")
        # a sentence's class is read off its first token; spans and token classes off every token
        of_sentences = type(model).__name__.endswith(("SequenceClassification", "MultipleChoice"))
        self.tokens = {"pooler": batch, "head": batch if of_sentences else batch * length, "": batch * length}
        for module in model.modules():
            self._module(self.part.get(module, "head"), module)

    def _module(self, part: str, module: nn.Module) -> None:
        runs = self.runs if part.startswith("layer") else 1
        tokens = runs * self.tokens.get(part, self.tokens[""])
        if isinstance(module, Binarizer):
            self._binarizer(part, module, tokens)
        elif isinstance(module, nn.Linear):
            self._linear(part, module, tokens)
        elif isinstance(module, nn.Embedding):
            self._embedding(part, module, tokens)
        elif isinstance(module, nn.LayerNorm):
            work = LAYERNORM + (RESIDUAL if part.startswith("layer") else 0)
            self._add(part, "LayerNorm", module.weight, elementwise_flops=work * module.weight.numel() * tokens)
            self._add(part, "LayerNorm", module.bias)
        else:
            self._activation(part, module, tokens)
            for parameter in module.parameters(recurse=False):
                self._add(part, "other", parameter)
        if module in self.attentions:
            self._attention(part, self.attentions[module], tokens)

    def _linear(self, part: str, layer: nn.Linear, tokens: int) -> None:
        bits = getattr(layer, "weight_bits", FLOAT)
        activation_bits = layer.input_binarizer.bits if isinstance(layer, BinaryLinear) else FLOAT
        flops = 2 * layer.in_features * layer.out_features * tokens * _share(bits, activation_bits)
        outputs, rescale = layer.out_features * tokens, min(bits, activation_bits) < FLOAT
        kind = "head" if part == "head" else "linear weights"
        self._add(part, kind, layer.weight, bits, matmul_flops=flops, strict_matmul_flops=flops)
        scales = layer.weight_scales if bits < FLOAT else 0
        self._add(part, "scales", numbers=scales, elementwise_flops=outputs * rescale)
        if layer.bias is not None:
            self._add(part, "head" if part == "head" else "biases", layer.bias, elementwise_flops=outputs)

    def _embedding(self, part: str, table: nn.Embedding, tokens: int) -> None:
        bits = getattr(table, "weight_bits", FLOAT)
        word = table is self.words or bits < FLOAT  # BinaryBERT's table has a twin
        kind = "word embedding" if word else "other embeddings"
        self._add(part, kind, table.weight, bits, elementwise_flops=table.embedding_dim * tokens)
        self._add(part, "row scales", numbers=table.num_embeddings * (bits < FLOAT))

    def _binarizer(self, part: str, binarizer: Binarizer, tokens: int) -> None:
        if binarizer.bits == FLOAT:
            return
        for scale in binarizer.scales():
            self._add(part, "scales", scale)
        if binarizer.channels:  # probabilities, the one input without channels, are counted with their attention
            beta = getattr(binarizer, "beta", None)
            self._add(part, "thresholds", beta, elementwise_flops=binarizer.channels * tokens)

    def _attention(self, part: str, parts: LayerParts, tokens: int) -> None:
        binarizer = getattr(parts.attention, "probs_binarizer", None)
        bits = binarizer.bits if binarizer else FLOAT
        width = parts.query.out_features
        heads = width // parts.attention.attention_head_size
        flops = 2 * 2 * tokens * self.length * width  # q k^T and p v
        binary = bits < FLOAT
        softmax = 0 if getattr(binarizer, "takes_scores", False) else SOFTMAX
        per_score = 1 + 1 + softmax + binary
        elementwise = per_score * heads * tokens * self.length + binary * width * tokens  # the context is rescaled
        self._add(
            part,
            "attention",
            matmul_flops=flops * (bits / WORD if binary else 1),
            strict_matmul_flops=flops * _share(bits, bits),
            elementwise_flops=elementwise,
        )

    def _activation(self, part: str, module: nn.Module, tokens: int) -> None:
        """The non-linearity of an FFN or a pooler, applied to the output of its first linear layer."""
        for attribute in ("intermediate_act_fn", "activation"):
            function = getattr(module, attribute, None)
            linear = next((child for child in module.children() if isinstance(child, nn.Linear)), None)
            if function is not None and linear is not None:
                work = GELU if "gelu" in type(function).__name__.lower() else 1
                self._add(part, "activation", elementwise_flops=work * linear.out_features * tokens)

    def _add(self, part: str, kind: str, tensor: Tensor | None = None, bits: int = FLOAT, numbers: int = 0, **flops):
        if tensor is not None:
            bits = FLOAT if id(tensor) in self.floats else bits
            numbers = tensor.numel() if id(tensor) not in self.stored else 0
            self.stored.add(id(tensor))
        width = {1: "one_bit_parameters", 2: "two_bit_parameters"}.get(bits, "float_parameters")
        if numbers or any(flops.values()):
            self.entries.append(Cost(part, kind, **{width: numbers}, **flops))


def _share(bits: int, other: int) -> float:
    """Cost of a product of operands of so many bits, as a share of a float one."""
    return min(1.0, bits * other / WORD)


def _grouped(entries: list[Cost], field: str) -> dict[str, Cost]:
    found: dict[str, Cost] = {}
    for entry in entries:
        name = getattr(entry, field)
        found[name] = found[name] + entry if name in found else entry
    return found
