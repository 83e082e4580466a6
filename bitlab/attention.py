"""Attention on bits: one function, registered with transformers under the name "bitlab".

The attention module projects q, k, v and calls the registered function with itself as the first argument, so binary
attention needs four submodules on each attention module (`convert.py` puts them there) and no copy of a model.
Without those submodules the same function is ordinary attention, which is what a float teacher runs.
"""

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from bitlab.products import code_product
from bitlab.upstream import AttentionMaskInterface, eager_mask

NAME = "bitlab"
KNOW_BITS = {NAME}  # names of the attention functions that ask the binarizers


def binary_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attention_scores: list | None = None,
    attention_inputs: list | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d) + mask) v, with q, k, v in {-a, +a} and the probabilities in {0, a} (BiT).

    The probabilities are binarized after the softmax and its dropout. Products are of codes, scales come after.
    A probs_binarizer that `takes_scores` (BiBERT's) is given the masked scores instead, without a softmax.

    Args:
        module: the attention module, carrying query_binarizer, key_binarizer, value_binarizer and probs_binarizer
            (or none of them: then nothing is quantized).
        query, key, value: (batch, heads, length, head_dim).
        attention_mask: additive, broadcastable to (batch, heads, length, length), or None.
        attention_scores: a list to which the scores before mask and softmax are appended, one tensor a layer. Pass it
            through the model: `model(**inputs, attention_scores=scores)`.
        attention_inputs: a list to which (query, key, value) as they came in are appended, one triple a layer.

    Returns:
        Context (batch, length, heads, head_dim) and the probabilities as used, (batch, heads, length, length).
    """
    if attention_inputs is not None:
        attention_inputs.append((query, key, value))
    q, q_scale = _codes(module, "query_binarizer", query)
    k, k_scale = _codes(module, "key_binarizer", key)
    v, v_scale = _codes(module, "value_binarizer", value)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    of_probs = getattr(module, "probs_binarizer", None)
    bits = getattr(of_probs, "bits", 32)
    scores = code_product(q, k.transpose(2, 3), bits) * (q_scale * k_scale * scaling)
    if attention_scores is not None:
        attention_scores.append(scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    if not getattr(of_probs, "takes_scores", False):
        scores = scores.softmax(dim=-1)
    probs = nn.functional.dropout(scores, dropout, module.training)
    p, p_scale = _codes(module, "probs_binarizer", probs)
    context = code_product(p, v, bits) * (p_scale * v_scale)
    return context.transpose(1, 2).contiguous(), p * p_scale


def _codes(module: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor | float]:
    binarizer = getattr(module, name, None)
    if binarizer is None:
        return x, 1.0
    if binarizer.channels is None:
        return binarizer(x, codes=True)
    # thresholds belong to channels, so heads are joined for the binarizer: views, nothing is copied
    batch, heads, length, width = x.shape
    codes, scale = binarizer(x.transpose(1, 2).reshape(batch, length, heads * width), codes=True)
    return codes.view(batch, length, heads, width).transpose(1, 2), scale


class BinaryMPNetAttention(MPNetSelfAttention):
    """MPNet's attention, which transformers computes in place, by `binary_attention`.

    What it adds to the scores, a bias for each distance of two tokens, enters with the mask.
    """

    def forward(self, hidden_states, attention_mask=None, position_bias=None, output_attentions=False, **kwargs):
        heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (layer(hidden_states).view(heads).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if position_bias is not None and (kept := getattr(self, "kept_heads", None)) is not None:
            position_bias = position_bias[:, kept]  # BinaryBERT's are half of them
        added = [x for x in (attention_mask, position_bias) if x is not None]
        mask = sum(added) if added else None
        context, probs = binary_attention(self, query, key, value, mask, None, self.dropout.p, **kwargs)
        out = self.o(context.flatten(2))
        return (out, probs) if output_attentions else (out,)


OWN = {MPNetSelfAttention: BinaryMPNetAttention}  # what takes the place of attention that asks no interface


# The mask function must be registered beside the attention function: without it transformers passes no mask at all.
AttentionInterface.register(NAME, binary_attention)
AttentionMaskInterface.register(NAME, eager_mask)
