"""The binarization methods, as a table: what each puts in the place of a float layer, and which precisions it has.

`convert.py` works from this table and knows no method by name. BiT is built from `layers.py`; the rivals in
`bitlab.rivals` enter themselves when they are imported, which `import bitlab` does.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bitlab.binarizers import ACTIVATION_BITS
from bitlab.errors import BitlabError
from bitlab.layers import BinaryEmbedding, BinaryLinear


@dataclass(frozen=True)
class Method:
    """One way to binarize a model.

    Args:
        name: as in `BitConfig(method=name)`.
        linear: what a linear layer becomes; its class attribute `binarizer` also serves q, k, v and the probabilities.
        embedding: what the word embedding becomes.
        weight_bits, activation_bits: the precisions it knows; 32 is full precision.
        relu: whether the feed-forward's activation becomes ReLU, for so many activation bits.
        prepare: changes the float encoder first; called with a dictionary of its modules, `{name: module}`.
    """

    name: str
    linear: type[BinaryLinear] = BinaryLinear
    embedding: type[BinaryEmbedding] = BinaryEmbedding
    weight_bits: tuple[int, ...] = (1, 32)
    activation_bits: tuple[int, ...] = (*ACTIVATION_BITS, 32)
    relu: Callable[[int], bool] = lambda bits: True
    prepare: Callable[[dict[str, nn.Module]], None] = lambda modules: None


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Enter a method under its name."""
    _METHODS[method.name] = method
    return method


def get_method(name: str) -> Method:
    """The method of that name. Raises BitlabError, with the known names, for another."""
    if name not in _METHODS:
        raise BitlabError(f"method {name!r} does not exist: choose {', '.join(_METHODS)}")
    return _METHODS[name]


register(Method("bit"))
