"""Make an encoder binary, change its precision, and plug both into transformers' `from_pretrained`.

Which modules those are is read off the tables of `bitlab.encoders` and of the methods. A conversion is decided and
checked as a whole before anything is changed.
"""

import copy

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from bitlab import attention, upstream
from bitlab.binarizers import levels
from bitlab.config import BitConfig, bit_config
from bitlab.encoders import Encoder, LayerParts, check_convertible, find_encoder
from bitlab.errors import BitlabError, check_choice
from bitlab.layers import METHOD_LAYERS, Binarizer, BinaryEmbedding, BinaryLinear, ElasticBinarizer
from bitlab.methods import ALPHA_POLICIES, METHODS, parse_precision


def binarize(model: PreTrainedModel, config: BitConfig | str | None = None) -> PreTrainedModel:
    """Make a Hugging Face encoder binary, in place.

    Its linear layers (those of the head excepted: the classifier, or the span or token head, stays float) become
    `BinaryLinear`, its word embedding `BinaryEmbedding`, its feed-forward activation ReLU; its attention modules get
    `query_binarizer`, `key_binarizer`, `value_binarizer`, `probs_binarizer` and run `bitlab.attention`. The latent
    weights are the model's own parameters. Alphas are initialised by the first batch in training mode. With
    `config.method` "bibert" or "binarybert" the layers are that method's own (`bitlab.rivals`).

    Args:
        model: BERT, RoBERTa, ELECTRA, DistilBERT, MPNet, ALBERT or a relative with the same layer names, with any head
            or none.
        config: precision and options, or a precision alone, "W1A2"; W1A1 if None.

    Returns:
        The same model, with a copy of `config` as `model.config.quantization_config`.

    Raises:
        BitlabError: if the model is binary already, is not built as bitlab expects, or has no module of a name in
            `modules_to_not_convert`. The model is then as it was.
    """
    if isinstance(config, str):
        config = BitConfig.from_precision(config)
    config = copy.deepcopy(config) if config else BitConfig()  # it will follow this model's precision, nobody else's
    if not isinstance(model, PreTrainedModel):
        raise BitlabError(f"binarize takes a transformers model, not a {type(model).__name__}")
    if any(isinstance(m, BinaryLinear | Binarizer) for m in model.modules()):
        raise BitlabError("this model is binary already: change its precision with set_precision(model, 'W1A2')")
    _check_kept(model, config)
    replace_modules(model, config)
    model.config.quantization_config = config
    return model


def set_precision(model: PreTrainedModel, precision: str, alpha: str = "rescale") -> PreTrainedModel:
    """Change the precision of a binary model in place; latent weights, biases and thresholds stay.

    Args:
        model: the result of `binarize` or of loading a binary checkpoint.
        precision: for instance "W1A2".
        alpha: what becomes of the scales where the number of levels changes: "rescale" (they follow the initial
            value's formula: multiplied by sqrt(Qp_old / Qp_new)), "carry" (they stay) or "reinit" (the next batch in
            training mode initialises them again). A scale that was never initialised always is.

    Returns:
        The same model.

    Raises:
        BitlabError: if the model is not binary or is packed, or there is no such precision or policy.
    """
    check_choice("alpha policy", alpha, ALPHA_POLICIES)
    config = bit_config(model)
    if config is None:
        raise BitlabError("this model is not binary: call binarize(model) first")
    weight_bits, activation_bits = parse_precision(precision, config.method)
    if not config.latent:
        raise BitlabError("this model is packed, its latent weights are gone: load the checkpoint it was packed from")
    for module in list(model.modules()):  # a list: a ternary layer that becomes binary gets a twin
        if isinstance(module, BinaryLinear):
            module.set_weight_bits(weight_bits)
        elif isinstance(module, BinaryEmbedding):
            module.set_weight_bits(config.embedding_bits or weight_bits)
    for module in model.modules():
        if isinstance(module, Binarizer) and module.bits != activation_bits:
            _change_bits(module, activation_bits, alpha)
    config.weight_bits, config.activation_bits = weight_bits, activation_bits
    _set_activations(model, find_encoder(model), config)
    return model


def _change_bits(binarizer: Binarizer, bits: int, policy: str) -> None:
    if 32 in (bits, binarizer.bits) or policy == "reinit":
        binarizer.forget_alpha()
    elif policy == "rescale" and isinstance(binarizer, ElasticBinarizer):
        old, new = (levels(b, binarizer.signed)[1] for b in (binarizer.bits, bits))
        binarizer.alpha.data *= (old / new) ** 0.5
    binarizer.set_bits(bits)


def replace_modules(model: PreTrainedModel, config: BitConfig) -> None:
    """What `binarize` does to the modules; `model.config.quantization_config` is the caller's to set."""
    encoder, method, kept = find_encoder(model), METHOD_LAYERS[config.method], config.modules_to_not_convert
    check_convertible(encoder)
    linears = {name: linear for name, linear in encoder.linears().items() if type(linear) is nn.Linear}
    linears = {name: linear for name, linear in linears.items() if not _is_kept(model, name, kept)}
    method.prepare(encoder.layers, set(linears.values()))
    _own_config(model)
    bits = config.activation_bits
    for name, linear in linears.items():
        options = {"weight_bits": config.weight_bits, "activation_bits": bits}
        model.set_submodule(name, method.linear.from_float(linear, **options))
    if not _is_kept(model, encoder.words, kept):
        words = model.get_submodule(encoder.words)
        model.set_submodule(encoder.words, method.embedding.from_float(words, config.word_embedding_bits))
    encoder = find_encoder(model)
    for parts in encoder.layers:
        if not _is_kept(model, parts.path("attention"), kept):
            _add_attention_binarizers(parts, bits, method.linear.binarizer)
    _set_activations(model, encoder, config)
    _set_attention(model, encoder)


def _set_activations(model: PreTrainedModel, encoder: Encoder, config: BitConfig) -> None:
    """Make each feed-forward's activation ReLU, or the model's own; what follows a ReLU gets the unsigned set.

    The model's configuration keeps its own activation: heads read it, too.
    """
    relu = config.activation_bits <= METHODS[config.method].relu_up_to
    for parts in encoder.layers:
        if not _is_kept(model, parts.path("activation"), config.modules_to_not_convert):
            own = getattr(model.config, parts.names.setting)
            parts.set_activation(nn.ReLU() if relu else ACT2FN[own])
        for binarizer in parts.second.modules():
            if isinstance(binarizer, Binarizer):
                binarizer.signed = not isinstance(parts.activation, nn.ReLU)


def _add_attention_binarizers(parts: LayerParts, bits: int, kind: type[Binarizer]) -> None:
    for name, layer in zip(("query", "key", "value"), parts.projections, strict=True):
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        binarizer = kind(layer.out_features, bits, signed=True, **like)
        setattr(parts.attention, f"{name}_binarizer", binarizer.train(parts.attention.training))
    parts.attention.probs_binarizer = kind(None, bits, signed=False, **like).train(parts.attention.training)


def _set_attention(model: PreTrainedModel, encoder: Encoder) -> None:
    """Let the attention modules run `bitlab.attention`, and the encoder refuse to run without."""
    for parts in encoder.layers:
        kind = type(parts.attention)
        parts.attention.__class__ = attention.OWN.get(kind, kind)
    holder = encoder.module if hasattr(encoder.module, "config") else model
    for module in (model, holder, *(parts.attention for parts in encoder.layers)):
        if hasattr(module, "config"):
            upstream.use_attention(module.config, attention.NAME)
    holder.register_forward_pre_hook(_keeps_its_bits)


def _keeps_its_bits(module: nn.Module, inputs: tuple) -> None:
    if upstream.attention_of(module.config) not in attention.KNOW_BITS:
        raise BitlabError(
            f"the attention of a binary model was set to {upstream.attention_of(module.config)!r}, which knows no "
            f"bits: set it back with model.set_attn_implementation({attention.NAME!r})"
        )


def _own_config(model: PreTrainedModel) -> None:
    """A config may serve several models; what is written into it here is about this one."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def _is_kept(model: PreTrainedModel, name: str, kept: list[str] | None) -> bool:
    """Whether the module of this name, or one around it, is to stay float: `kept` has parts of such names.

    Names begin with the encoder's, whether the model has a head or not.
    """
    whole = f"{model.base_model_prefix}.{name}" if model.base_model is model else name
    return any(f".{part}." in f".{whole}." for part in kept or [])


def _check_kept(model: PreTrainedModel, config: BitConfig) -> None:
    for part in config.modules_to_not_convert or []:
        if not any(_is_kept(model, name, [part]) for name, _ in model.named_modules()):
            raise BitlabError(f"{type(model).__name__} has no module {part!r} to keep float: print(model) shows all")


class BinaryQuantizer(HfQuantizer):
    """What loading latent and packed checkpoints has in common."""

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        """transformers' word for a parameter that the file may hold in another shape: alpha was 0-d at first."""
        owner, _, kind = param_name.rpartition(".")
        return self.pre_quantized and kind == "alpha" and isinstance(model.get_submodule(owner), Binarizer)

    def is_serializable(self, *args, **kwargs):
        return True


@register_quantizer("bitlab")
class BitQuantizer(BinaryQuantizer):
    """Lets `AutoModelFor*.from_pretrained(path, quantization_config=BitConfig(...))` load a float checkpoint as a
    binary model, and plain `from_pretrained(folder)` load a saved one. Needs nothing but `import bitlab`."""

    is_trainable = is_qat_trainable = is_compileable = True

    def _process_model_before_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            replace_modules(model, self.quantization_config)
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        # a configuration may be given for several models, and follows the precision of this one from now on
        model.config.quantization_config = self.quantization_config = copy.deepcopy(self.quantization_config)
        if not self.pre_quantized:  # with its weights there, it is what `binarize` is given
            _check_kept(model, self.quantization_config)
            replace_modules(model, self.quantization_config)
        for module in model.modules():
            if isinstance(module, Binarizer):
                if self.pre_quantized and not all(map(upstream.was_loaded, module.parameters(recurse=False))):
                    module.reset()  # the checkpoint had it not: another head's pooler
                module.sync()
        return model
