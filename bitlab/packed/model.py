"""Packing a trained model, saving it, loading it, and the plug-in for transformers' `from_pretrained`."""

import copy
import os
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from bitlab import attention
from bitlab.config import BitConfig
from bitlab.convert import replace_modules
from bitlab.errors import BitlabError
from bitlab.layers import BinaryEmbedding, BinaryLinear, ElasticBinarizer
from bitlab.packed import format
from bitlab.packed.encoder import FusedLayer, fuse
from bitlab.packed.layers import PackedEmbedding, PackedLinear


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """A packed copy of a trained binary model: same class, same outputs, its 1-bit weights kept as bits.

    The model itself stays as it is. Its encoder layers run fused, from codes to codes. Raises BitlabError for a model
    that is not binary, that was never trained, that is packed already, or whose output layer is its word embedding
    (a language model).
    """
    _check(model)
    own = [module.weight for module in model.modules() if isinstance(module, BinaryLinear | BinaryEmbedding)]
    latent = {id(weight): weight for weight in own}  # not copied, as the copy drops them at once
    packed = copy.deepcopy(model, latent).eval().requires_grad_(False)
    packed.config.quantization_config = format.PackedConfig.of(model.config.quantization_config)
    packed.hf_quantizer = PackedQuantizer(packed.config.quantization_config)
    _replace(packed)
    return nn.Module.float(packed)  # the model's own float() refuses for whatever was loaded with a quantizer


def save_packed(model: PreTrainedModel, folder: str | os.PathLike) -> Path:
    """Write a binary model to `folder` as a packed one; returns the path of the file with the weights.

    Args:
        model: the result of training (see `pack`), or a packed model.
        folder: made if it is not there. `load_packed` and `AutoModelFor*.from_pretrained` read it.
    """
    if not isinstance(getattr(model.config, "quantization_config", None), format.PackedConfig):
        model = pack(model)
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(path)
    except OSError as error:
        raise BitlabError(f"{str(folder)!r} cannot be written ({error.strerror or error}): choose another") from error
    return path / format.WEIGHTS


def load_packed(folder: str | os.PathLike) -> PreTrainedModel:
    """The packed model in `folder`: called as the float one is, with the same outputs.

    Everything is checked first (see `bitlab.packed.format.verify`): a corrupt, truncated or newer file is one
    BitlabError.
    """
    path = Path(folder).expanduser()
    raw = format.read_config(path)
    try:
        config = AutoConfig.from_pretrained(path)
        kind = getattr(transformers, raw["architectures"][0])
        named = issubclass(kind, PreTrainedModel)
    except BitlabError:
        raise
    except Exception as error:  # whatever transformers raises for a config.json that makes no sense
        raise BitlabError(f"config.json in {str(path)!r} is damaged ({type(error).__name__}): copy it again") from error
    if not named:
        raise BitlabError(f"config.json in {str(path)!r} names no model class of transformers: copy it again")
    format.verify(path / format.WEIGHTS, config)
    return kind.from_pretrained(path, dtype=torch.float32)


def is_fused(model: PreTrainedModel) -> bool:
    """Whether all encoder layers of a packed model run fused, from codes to codes."""
    layers = [module for module in model.modules() if isinstance(module, FusedLayer)]
    return bool(layers) and len(layers) == sum(hasattr(m, "probs_binarizer") for m in model.modules())


def _check(model: PreTrainedModel) -> None:
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if not isinstance(config, BitConfig):
        raise BitlabError("only a binary model can be packed: call binarize(model) and train it first")
    if not config.latent:
        raise BitlabError("this model is packed already")
    if config.method != "bit":
        raise BitlabError(
            f"only models of method 'bit' can be packed, this one is of {config.method!r}: binarize with method='bit'"
        )
    if config.weight_bits != 1:
        raise BitlabError(f"a {config.precision} model has no 1-bit weights to pack: call set_precision(model, 'W1A1')")
    if not any(isinstance(module, BinaryLinear) for module in model.modules()):
        raise BitlabError(f"{type(model).__name__} has no BinaryLinear layers to pack")
    if any(not m.initialized for m in model.modules() if isinstance(m, ElasticBinarizer) and m.bits != 32):
        raise BitlabError("this model was never trained, its scales alpha are not set: train it, then pack it")
    output = model.get_output_embeddings()
    if output is not None and output.weight is model.get_input_embeddings().weight:
        raise BitlabError(
            f"the output layer of {type(model).__name__} is its word embedding, which cannot be packed: pack a model "
            f"with a classification head, a question answering head, or none"
        )


def _replace(model: PreTrainedModel) -> None:
    """Swap binary layers for packed ones and fuse encoder layers, in place; on the meta device too."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BinaryLinear):
            _set(model, name, PackedLinear(module))
        elif isinstance(module, BinaryEmbedding) and module.weight_bits == 1:
            _set(model, name, PackedEmbedding(module))
    for module in model.modules():
        if isinstance(module, ElasticBinarizer):  # all are initialized: that is not worth an entry in the file
            module.register_buffer("initialized", torch.ones((), dtype=torch.bool), persistent=False)
    fuse(model)
    model.set_attn_implementation(attention.NAME)


def _set(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module.eval())


@register_quantizer(format.METHOD)
class PackedQuantizer(HfQuantizer):
    """Lets plain `AutoModelFor*.from_pretrained(folder)` load a packed model, and `save_pretrained` write one."""

    requires_calibration = True  # transformers' word for: there is no making a packed model of a float checkpoint

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        if not checkpoint_files or len(checkpoint_files) != 1 or not str(checkpoint_files[0]).endswith(".safetensors"):
            raise BitlabError(f"a packed model is one file, {format.WEIGHTS}: pack the checkpoint again")
        stored = format.verify(checkpoint_files[0], model.config)
        replace_modules(model, self.quantization_config)
        _replace(model)
        _check_shapes(model, stored)
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        for module in model.modules():
            if isinstance(module, ElasticBinarizer):
                module.initialized.fill_(True)
                module.sync()
        return model.requires_grad_(False)

    def update_dtype(self, dtype):
        return torch.float32

    def get_state_dict_and_metadata(self, model):
        return None, format.metadata(model.state_dict(), model.config)

    def is_serializable(self, *args, **kwargs):
        return True

    @property
    def is_trainable(self):
        return False


def _check_shapes(model: PreTrainedModel, stored: dict) -> None:
    """Every tensor of the encoder is in the file, with its shape and type; heads may differ, as in transformers."""
    prefix = f"{model.base_model_prefix}."
    inside = {name.removeprefix(prefix): value for name, value in stored.items()}
    for name, tensor in model.base_model.state_dict().items():
        if name not in inside:
            if name.startswith("pooler."):
                continue
            raise BitlabError(f"the packed model has no {name!r}: config.json and {format.WEIGHTS} do not fit together")
        if inside[name] != (tensor.dtype, tuple(tensor.shape)):
            raise BitlabError(
                f"{name!r} of the packed model is {inside[name][0]} {list(inside[name][1])} and should be "
                f"{tensor.dtype} {list(tensor.shape)}: config.json and {format.WEIGHTS} do not fit together"
            )
