"""What there is to choose, without torch: methods and their precisions, what becomes of the scales, what a student
learns from."""

import re
from dataclasses import dataclass

from bitlab.errors import BitlabError, check_choice, either

ACTIVATION_BITS = (1, 2, 4, 8)
ALPHA_POLICIES = ("rescale", "carry", "reinit")  # what becomes of the scales where the number of levels changes


@dataclass(frozen=True)
class Method:
    """One way to binarize a model; what its layers are stands beside the layers, in `bitlab.layers.METHOD_LAYERS`.

    Args:
        weight_bits, activation_bits: the precisions it knows; 32 is full precision.
        relu_up_to: the feed-forward's activation becomes ReLU for up to so many activation bits.
    """

    weight_bits: tuple[int, ...] = (1, 32)
    activation_bits: tuple[int, ...] = (*ACTIVATION_BITS, 32)
    relu_up_to: int = 32


METHODS = {
    "bit": Method(),
    "bibert": Method(activation_bits=(1, 32), relu_up_to=0),
    "binarybert": Method(weight_bits=(1, 2, 32), relu_up_to=4),
}


def parse_precision(text: str, method: str = "bit") -> tuple[int, int]:
    """ "W1A2" -> (1, 2): bits of weights and activations.

    Raises:
        BitlabError: for anything that the method has not.
    """
    match = re.fullmatch(r"\s*W(\d+)A(\d+)\s*", str(text), flags=re.IGNORECASE)
    if not match:
        raise BitlabError(f"{text!r} is no precision: write W<weight bits>A<activation bits>, for instance W1A1")
    return check_precision(int(match[1]), int(match[2]), method)


def check_precision(weight_bits: int, activation_bits: int, method: str = "bit") -> tuple[int, int]:
    """The two as they stand in the method's table: a file's 1.0 is 1.

    Raises:
        BitlabError: for a method that does not exist, and for a precision that does not exist with it.
    """
    check_choice("method", method, METHODS)
    known = METHODS[method]
    found = _known(known.weight_bits, weight_bits), _known(known.activation_bits, activation_bits)
    if None in found:
        raise BitlabError(
            f"precision W{weight_bits}A{activation_bits} does not exist{'' if method == 'bit' else f' for {method}'}: "
            f"weights have {either(known.weight_bits)} bits, activations {either(known.activation_bits)}"
        )
    return found


def _known(choices: tuple[int, ...], bits: float) -> int | None:
    return next((choice for choice in choices if choice == bits), None)


@dataclass(frozen=True)
class DistillationConfig:
    """What the student learns from, and how each term is averaged.

    Args:
        logits: weight of the soft cross-entropy between teacher and student logits; of several labels a row it is
            the sigmoid one, of a regression the mean squared error.
        hidden: weight of the mean squared error of the L + 1 hidden states (the embedding output included).
        relative: divide each hidden state's error by the variance of the teacher's, so that all layers count alike.
        attention: weight of the mean squared error of the L attention scores (before mask and softmax).
        hard: weight of the loss of the data set's labels (BiBERT): cross-entropy, or what a regression or several
            labels a row take in its place.
        directions: weight of Direction-Matching Distillation (BiBERT), `bitlab.rivals.bibert.direction_losses`.
        temperature: divides both logits in the cross-entropy, which is multiplied by its square.
        per_element: average the cross-entropy over all B C elements instead of the B examples (released program).
        count_padding: let padding count in the hidden-state and attention terms (released program).
        soft_regression: treat a single regression logit like class logits, whose soft cross-entropy is identically
            zero, instead of by mean squared error (released program).
        teacher_dropout: run the teacher in training mode (released program).
    """

    logits: float = 1.0
    hidden: float = 1.0
    relative: bool = False
    attention: float = 0.0
    hard: float = 0.0
    directions: float = 0.0
    temperature: float = 1.0
    per_element: bool = False
    count_padding: bool = False
    soft_regression: bool = False
    teacher_dropout: bool = False

    @classmethod
    def released(cls, **changes) -> "DistillationConfig":
        """The reductions of the released BiT program, faults included."""
        faults = ("per_element", "count_padding", "soft_regression", "teacher_dropout")
        return cls(**dict.fromkeys(faults, True) | changes)
