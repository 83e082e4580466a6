"""`BitConfig`: what a binary model is. config.json stores it as `quantization_config`."""

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitlab.errors import BitlabError
from bitlab.methods import DistillationConfig, check_precision, parse_precision

__all__ = ["BitConfig", "DistillationConfig"]


@register_quantization_config("bitlab")
class BitConfig(QuantizationConfigMixin):
    """Precision and options of a binary model.

    Args:
        weight_bits: bits of the linear layers' weights, 1 or 32; "binarybert" has 2 (ternary) too.
        activation_bits: bits of their inputs and of the attention's q, k, v and probabilities: 1, 2, 4, 8 or 32;
            "bibert" has 1 and 32 only.
        embedding_bits: bits of the word embedding, 1 or 32; as the weights if None.
        method: the binarization method, "bit", "bibert" or "binarybert".
        modules_to_not_convert: parts of module names that stay float, for instance ["pooler"]; a string is one name.
        history: the precisions that training went through, "W32A32 -> W1A2"; set by schedules.

    Raises:
        BitlabError: for a precision or method that does not exist, or another option.
    """

    latent = True  # the checkpoint holds the float weights that training goes on with (a packed one does not)

    def __init__(
        self,
        weight_bits: int = 1,
        activation_bits: int = 1,
        embedding_bits: int | None = None,
        method: str = "bit",
        modules_to_not_convert: str | list[str] | None = None,
        history: str | None = None,
        **kwargs,
    ):
        kwargs.pop("quant_method", None)
        if kwargs:
            raise BitlabError(f"BitConfig has no option {', '.join(map(repr, kwargs))}")
        self.quant_method = "bitlab"
        self.weight_bits, self.activation_bits = check_precision(weight_bits, activation_bits, method)
        if embedding_bits not in (None, 1, 32):
            raise BitlabError(f"an embedding of {embedding_bits} bits does not exist: choose 1 or 32")
        self.embedding_bits = embedding_bits and int(embedding_bits)
        self.method = method
        self.modules_to_not_convert = _names(modules_to_not_convert)
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


def bit_config(model) -> BitConfig | None:
    """What a binary model is; None for any other."""
    found = getattr(getattr(model, "config", None), "quantization_config", None)
    return found if isinstance(found, BitConfig) else None


def _names(given: str | list[str] | None) -> list[str] | None:
    names = [given] if isinstance(given, str) else given
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise BitlabError(f"modules_to_not_convert is {given!r}: give parts of module names, for instance ['pooler']")
    return names if names is None else list(names)
