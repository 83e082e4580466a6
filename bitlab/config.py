"""What a binary model is: its precision and options, stored in config.json as `quantization_config`."""

import re

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitlab.errors import BitlabError
from bitlab.methods import get_method


def parse_precision(text: str, method: str = "bit") -> tuple[int, int]:
    """ "W1A2" -> (1, 2): bits of weights and activations. Anything that the method has not is a BitlabError."""
    match = re.fullmatch(r"\s*W(\d+)A(\d+)\s*", str(text), flags=re.IGNORECASE)
    if not match:
        raise BitlabError(f"{text!r} is no precision: write W<weight bits>A<activation bits>, for instance W1A1")
    weight_bits, activation_bits = int(match[1]), int(match[2])
    check_precision(weight_bits, activation_bits, method)
    return weight_bits, activation_bits


def check_precision(weight_bits: int, activation_bits: int, method: str = "bit") -> None:
    """Raise a BitlabError for a precision that does not exist with this method."""
    known = get_method(method)
    if weight_bits not in known.weight_bits or activation_bits not in known.activation_bits:
        raise BitlabError(
            f"precision W{weight_bits}A{activation_bits} does not exist{'' if method == 'bit' else f' for {method}'}: "
            f"weights have {_either(known.weight_bits)} bits, activations {_either(known.activation_bits)}"
        )


def _either(bits: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, bits[:-1]))} or {bits[-1]}"


@register_quantization_config("bitlab")
class BitConfig(QuantizationConfigMixin):
    """Precision and options of a binary model.

    Args:
        weight_bits: bits of the linear layers' weights, 1 or 32; "binarybert" has 2 (ternary) too.
        activation_bits: bits of their inputs and of the attention's q, k, v and probabilities: 1, 2, 4, 8 or 32;
            "bibert" has 1 and 32 only.
        embedding_bits: bits of the word embedding, 1 or 32; as the weights if None.
        method: the binarization method, "bit", "bibert" or "binarybert".
        modules_to_not_convert: parts of module names that stay float, for instance ["pooler"].
        history: the precisions that training went through, "W32A32 -> W1A2"; set by schedules.
    """

    latent = True  # the checkpoint holds the float weights that training goes on with (a packed one does not)

    def __init__(
        self,
        weight_bits: int = 1,
        activation_bits: int = 1,
        embedding_bits: int | None = None,
        method: str = "bit",
        modules_to_not_convert: list[str] | None = None,
        history: str | None = None,
        **kwargs,
    ):
        kwargs.pop("quant_method", None)
        if kwargs:
            raise BitlabError(f"BitConfig has no option {', '.join(map(repr, kwargs))}")
        check_precision(weight_bits, activation_bits, method)
        if embedding_bits not in (None, 1, 32):
            raise BitlabError(f"an embedding of {embedding_bits} bits does not exist: choose 1 or 32")
        self.quant_method = "bitlab"
        self.weight_bits, self.activation_bits, self.embedding_bits = (
            weight_bits,
            activation_bits,
            embedding_bits,
        )
        self.method = method
        self.modules_to_not_convert = modules_to_not_convert
        self.history = history

    @classmethod
    def from_precision(cls, precision: str, method: str = "bit", **options) -> "BitConfig":
        """`BitConfig.from_precision("W1A2")` is `BitConfig(weight_bits=1, activation_bits=2)`."""
        weight_bits, activation_bits = parse_precision(precision, method)
        return cls(weight_bits, activation_bits, method=method, **options)

    @property
    def precision(self) -> str:
        """For instance "W1A2"."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def word_embedding_bits(self) -> int:
        """Bits of the word embedding: `embedding_bits`, or those of the weights."""
        return self.embedding_bits or self.weight_bits
