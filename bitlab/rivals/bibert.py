"""BiBERT: weights and activations by plain signs, attention without a softmax, and distillation of directions.

Source: BiBERT (Qin et al., 2022, arXiv 2203.06390). It has one precision, W1A1 (the papers' 1-1-1); the feed-forward
keeps its GELU, so that what FFN-2 is given is -1 or +1 like everything else.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from bitlab.binarizers import sign, straight_through, weight_forward
from bitlab.layers import METHOD_LAYERS, Binarizer, BinaryEmbedding, BinaryLinear, MethodLayers


def binarize_activation(x: Tensor) -> Tensor:
    """`sign(x)`, with sign(0) = +1; the gradient is that of `clamp(x, -1, 1)`. Shaped like x."""
    return straight_through(x.clamp(-1, 1), sign(x))


def binarize_scores(scores: Tensor) -> Tensor:
    """Bi-Attention's step function: 1 where `scores > 0`, else 0; the gradient is that of `clamp(scores, -1, 1)`.

    Zero gives no bit: a score that dropout removed, on padding or not, must not attend. Shaped like scores.
    """
    return straight_through(scores.clamp(-1, 1), (scores > 0).to(scores.dtype))


def binarize_rows(weight: Tensor) -> Tensor:
    """`mean|W_r| sign(W_r - mean(W_r))` for each row r; the gradient is that of `clamp(W_r - mean(W_r), -1, 1)`.

    The scale is of the uncentred row and carries no gradient. Rows are independent of each other, so some rows of a
    table can be binarized without the rest.

    Args:
        weight: (..., columns).

    Returns:
        A tensor of its shape.
    """
    mean = weight.mean(dim=-1, keepdim=True)
    codes, m = weight_forward(weight.detach(), mean.detach(), True)
    return straight_through((weight - mean).clamp(-1, 1), m * codes)


class SignBinarizer(Binarizer):
    """Signs, without a scale and without thresholds: there is nothing to learn or to initialise.

    Args:
        channels, bits, signed: see `Binarizer`; bits is 1 or 32. The signed set is {-1, +1}, the unsigned one {0, 1}.
    """

    @property
    def takes_scores(self) -> bool:
        """In the place of the attention's probabilities it wants masked scores, without a softmax."""
        return self.bits == 1

    def codes(self, x: Tensor) -> tuple[Tensor, float]:
        if self.bits == 32:
            return x, 1.0
        return (binarize_activation(x) if self.signed else binarize_scores(x)), 1.0


class BiBertLinear(BinaryLinear):
    """`sign(x) (m_r sign(W_r - mean(W_r)))^T + bias`, with a scale `m_r = mean|W_r|` for each output.

    Args and shapes: as of `BinaryLinear`.
    """

    binarizer = SignBinarizer

    @property
    def weight_scales(self) -> int:
        """One scale m a row."""
        return self.out_features

    def forward(self, x: Tensor) -> Tensor:
        weight = binarize_rows(self.weight) if self.weight_bits == 1 else self.weight
        return F.linear(self.input_binarizer(x), weight, self.bias).to(weight.dtype)  # attention wants one type


class BiBertEmbedding(BinaryEmbedding):
    """An embedding binarized by `binarize_rows`: only the rows that the batch asks for."""

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.Embedding.forward(self, ids)
        return rows if self.weight_bits == 32 else binarize_rows(rows)


METHOD_LAYERS["bibert"] = MethodLayers(BiBertLinear, BiBertEmbedding)


# ------------------------------------------------------------------------------- Direction-Matching Distillation


def direction_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`|| S / ||S|| - T / ||T|| ||`, Frobenius norms of the matrices in the last two axes, averaged over the others.

    Only the directions of the two matrices count, not their sizes: 0 where they agree, 2 where they are opposite. Taken
    matrix by matrix, so that one example's loss does not depend on its neighbours'. 0-d.
    """
    s, t = (F.normalize(x.flatten(-2), dim=-1) for x in (student, teacher))
    return (s - t).norm(dim=-1).mean()


def similarity(x: Tensor) -> Tensor:
    """`x x^T / sqrt(d)` of (..., length, d): how alike the tokens are, (..., length, length)."""
    return x @ x.transpose(-1, -2) * x.shape[-1] ** -0.5


def direction_losses(student, teacher, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Direction-Matching Distillation: four terms of the loss, each summed over the layers.

    "query", "key", "value": `direction_distance` of the similarities q q^T / sqrt(d) (k k^T, v v^T) of every head, q
    as it is before binarization. "states": `direction_distance` of the L + 1 hidden states themselves.

    Args:
        student, teacher: outputs with `attention_inputs`, L triples (query, key, value) of (B, H, T, d), and
            `hidden_states`, L + 1 tensors (B, T, D).
        mask: (B, T), 1 for a real token; what padding holds does not count. None: all do.

    Returns:
        A dict of 0-d tensors.

    Source: BiBERT, section 3.3.
    """
    tokens = 1.0 if mask is None else mask[:, :, None].to(student.hidden_states[0].dtype)
    heads = 1.0 if mask is None else tokens[:, None]
    losses = {}
    for number, name in enumerate(("query", "key", "value")):
        pairs = zip(student.attention_inputs, teacher.attention_inputs, strict=True)
        losses[name] = sum(
            direction_distance(similarity(s[number] * heads), similarity(t[number] * heads)) for s, t in pairs
        )
    pairs = zip(student.hidden_states, teacher.hidden_states, strict=True)
    losses["states"] = sum(direction_distance(s * tokens, t * tokens) for s, t in pairs)
    return losses
