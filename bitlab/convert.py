"""Make an encoder binary, change its precision, and plug both into transformers' `from_pretrained`.

Layers are found by structure, not by model name: an attention module is one with three linear layers called
`query, key, value` (BERT, RoBERTa, ELECTRA and their many relatives) or `q_lin, k_lin, v_lin` (DistilBERT).
"""

import copy

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from bitlab import attention, upstream
from bitlab.binarizers import levels
from bitlab.config import ALPHA_POLICIES, BitConfig, get_method, parse_precision
from bitlab.errors import BitlabError, check_choice
from bitlab.layers import METHOD_LAYERS, BinaryEmbedding, BinaryLinear, ElasticBinarizer

PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
ACTIVATIONS = {
    "intermediate_act_fn": "hidden_act",
    "activation": "activation",
}  # module attribute: config attribute
AFTER_RELU = ("output.dense", "ffn.lin2")  # layers whose input is the feed-forward's ReLU output
NOT_AFTER_RELU = ("attention.output.dense",)


def binarize(model: PreTrainedModel, config: BitConfig | None = None) -> PreTrainedModel:
    """Make a Hugging Face encoder binary, in place.

    Its linear layers (those of the head excepted: the classifier, or the span or token head, stays float) become
    `BinaryLinear`, its word embedding `BinaryEmbedding`, its feed-forward activation ReLU; its attention modules get
    `query_binarizer`, `key_binarizer`, `value_binarizer`, `probs_binarizer` and run `bitlab.attention`. The latent
    weights are the model's own parameters. Alphas are initialised by the first batch in training mode.

    Args:
        model: BERT, RoBERTa, ELECTRA, DistilBERT or a relative with the same layer names, with any head or none. Its
            attention must run through transformers' attention interface, where it stays: after
            `model.set_attn_implementation("sdpa")` it would compute with floats again.
        config: precision and options; W1A1 if None.
    Returns: the same model, with a copy of `config` as `model.config.quantization_config`.
    With `config.method` "bibert" or "binarybert" the layers are that method's own (`bitlab.rivals`).
    Errors: BitlabError if the model is binary already or not built as bitlab expects.
    """
    config = copy.deepcopy(config) if config else BitConfig()  # it will follow this model's precision, nobody else's
    if not isinstance(model, PreTrainedModel):
        raise BitlabError(f"binarize takes a transformers model, not a {type(model).__name__}")
    if any(isinstance(m, BinaryLinear | ElasticBinarizer) for m in model.modules()):
        raise BitlabError("this model is binary already: change its precision with set_precision(model, 'W1A2')")
    _own_config(model)
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
    Returns: the same model.
    """
    check_choice("alpha policy", alpha, ALPHA_POLICIES)
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, BitConfig):
        raise BitlabError("this model is not binary: call binarize(model) first")
    weight_bits, activation_bits = parse_precision(precision, config.method)
    if not config.latent:
        raise BitlabError("this model is packed, its latent weights are gone: load the checkpoint it was packed from")
    for module in list(model.modules()):  # a list: a ternary layer that becomes binary gets a twin
        if isinstance(module, BinaryLinear):
            module.set_weight_bits(weight_bits)
        elif isinstance(module, BinaryEmbedding):
            module.set_weight_bits(config.embedding_bits or weight_bits)
    _set_activation(model, config, activation_bits <= get_method(config.method).relu_up_to)
    for module in model.modules():
        if isinstance(module, ElasticBinarizer) and module.bits != activation_bits:
            _change_bits(module, activation_bits, alpha)
    config.weight_bits, config.activation_bits = weight_bits, activation_bits
    return model


def _change_bits(binarizer: ElasticBinarizer, bits: int, policy: str) -> None:
    if 32 in (bits, binarizer.bits) or policy == "reinit":
        binarizer.forget_alpha()
    elif policy == "rescale":
        old, new = (levels(b, binarizer.signed)[1] for b in (binarizer.bits, bits))
        binarizer.alpha.data *= (old / new) ** 0.5
    binarizer.set_bits(bits)


def _own_config(model: PreTrainedModel) -> None:
    """A config may serve several models; what is written into it here is about this one."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def replace_modules(model: PreTrainedModel, config: BitConfig) -> None:
    """What `binarize` does to the modules; `model.config` is the caller's to set."""
    encoder, method = model.base_model, METHOD_LAYERS[config.method]
    _check_structure(model)
    modules = _converted(model, config)
    method.prepare(modules)
    for module in modules.values():
        if projections(module):
            _add_attention_binarizers(module, config, method.linear.binarizer)
    if config.activation_bits <= get_method(config.method).relu_up_to:
        _set_activation(model, config, relu=True)
    has_relu = _has_relu(model, config)
    for name, module in modules.items():
        if type(module) is nn.Linear:
            options = {
                "weight_bits": config.weight_bits,
                "activation_bits": config.activation_bits,
                "signed": not (has_relu and _second_of_two(name)),
            }
            _set(encoder, name, method.linear.from_linear(module, **options))
        elif module is encoder.get_input_embeddings():
            _set(encoder, name, method.embedding.from_embedding(module, config.word_embedding_bits))
    model.set_attn_implementation(attention.NAME)


def _check_structure(model: PreTrainedModel) -> None:
    modules = list(model.base_model.modules())
    attentions = [module for module in modules if projections(module)]
    feed_forwards = [module for module in modules if _activation(module, model.config)]
    if not attentions or len(attentions) != len(feed_forwards):
        raise BitlabError(
            f"{type(model).__name__} is not built as bitlab expects ({len(attentions)} attention modules with "
            f"{' or '.join('/'.join(p) for p in PROJECTIONS)}, {len(feed_forwards)} feed-forward activations): "
            f"binarize BERT, RoBERTa, ELECTRA, DistilBERT or a relative"
        )
    for module in attentions:  # another one would never call its binarizers
        if not upstream.asks_interface(module):
            raise BitlabError(
                f"{type(module).__name__} computes attention by itself, not through transformers' attention interface, "
                f"so that it can't be binarized: take BERT, RoBERTa, ELECTRA, DistilBERT or another relative"
            )


def _converted(model: PreTrainedModel, config: BitConfig) -> dict[str, nn.Module]:
    """The encoder's modules by name, without those that stay float."""
    encoder, prefix = model.base_model, model.base_model_prefix
    return {name: module for name, module in encoder.named_modules() if not _skipped(f"{prefix}.{name}", config)}


def _set_activation(model: PreTrainedModel, config: BitConfig, relu: bool) -> None:
    """Make the feed-forward's activation ReLU, or the model's own again; what follows a ReLU gets the unsigned set.

    The model's configuration keeps its own activation: heads read it, too.
    """
    modules = _converted(model, config)
    for module in modules.values():
        if found := _activation(module, model.config):
            _, attribute, setting = found
            setattr(module, attribute, nn.ReLU() if relu else ACT2FN[getattr(model.config, setting)])
    signed = not _has_relu(model, config)
    for name, module in modules.items():
        if isinstance(module, BinaryLinear) and _second_of_two(name):
            for binarizer in module.modules():
                if isinstance(binarizer, ElasticBinarizer):
                    binarizer.signed = signed


def _has_relu(model: PreTrainedModel, config: BitConfig) -> bool:
    found = [f for module in _converted(model, config).values() if (f := _activation(module, model.config))]
    return all(isinstance(getattr(module, attribute), nn.ReLU) for module, attribute, _ in found)


def _second_of_two(name: str) -> bool:
    """Whether a layer of this name is the feed-forward's second."""
    return name.endswith(AFTER_RELU) and not name.endswith(NOT_AFTER_RELU)


def _skipped(name: str, config: BitConfig) -> bool:
    return any(f".{part}." in f".{name}." for part in config.modules_to_not_convert or [])


def _activation(module: nn.Module, config) -> tuple[nn.Module, str, str] | None:
    """(module, attribute, config setting) of a feed-forward's activation function, if `module` holds one."""
    for attribute, setting in ACTIVATIONS.items():
        if hasattr(module, attribute) and hasattr(config, setting) and _holds_linear(module):
            return module, attribute, setting
    return None


def projections(module: nn.Module, kind: type = nn.Linear) -> tuple[nn.Module, ...] | None:
    """The query, key and value layers of an attention module, if `module` is one and they are of this kind."""
    for names in PROJECTIONS:
        layers = tuple(getattr(module, name, None) for name in names)
        if all(isinstance(layer, kind) for layer in layers):
            return layers
    return None


def _add_attention_binarizers(module: nn.Module, config: BitConfig, kind_of_binarizer: type) -> None:
    for layer, kind in zip(projections(module), ("query", "key", "value"), strict=True):
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        binarizer = kind_of_binarizer(layer.out_features, config.activation_bits, signed=True, **like)
        setattr(module, f"{kind}_binarizer", binarizer.train(module.training))
    probs_binarizer = kind_of_binarizer(None, config.activation_bits, signed=False, **like)
    module.probs_binarizer = probs_binarizer.train(module.training)


def _holds_linear(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Linear) for child in module.children())


def _set(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def _loaded(binarizer: ElasticBinarizer) -> bool:
    """Whether the checkpoint had its parameters; if not (another head's pooler), they are memory as it was found."""
    return all(upstream.was_loaded(p) for p in binarizer.parameters(recurse=False))


@register_quantizer("bitlab")
class BitQuantizer(HfQuantizer):
    """Lets `AutoModelFor*.from_pretrained(path, quantization_config=BitConfig(...))` load a float checkpoint as a
    binary model, and plain `from_pretrained(folder)` load a saved one. Needs nothing but `import bitlab`."""

    def _process_model_before_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            replace_modules(model, self.quantization_config)
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        # a configuration may be given for several models, and follows the precision of this one from now on
        model.config.quantization_config = self.quantization_config = copy.deepcopy(self.quantization_config)
        if not self.pre_quantized:  # with its weights there, it is what `binarize` is given
            replace_modules(model, self.quantization_config)
        for module in model.modules():
            if isinstance(module, ElasticBinarizer):
                if self.pre_quantized and not _loaded(module):
                    module.reset()
                module.sync()
        return model

    def is_serializable(self, *args, **kwargs):
        return True

    @property
    def is_trainable(self):
        return True

    @property
    def is_qat_trainable(self):
        return True

    @property
    def is_compileable(self):
        return True
