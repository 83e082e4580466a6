"""Packed checkpoints: a packed model is made of a trained one, saved and loaded. Its file: `bitlab.packed.format`."""

import copy
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantizer

from bitlab import attention
from bitlab.config import bit_config
from bitlab.convert import BinaryQuantizer, replace_modules
from bitlab.errors import BitlabError
from bitlab.files import load_folder, quiet, read_model_config, shipped, whole_folder, writing
from bitlab.layers import BinaryEmbedding, BinaryLinear, ElasticBinarizer
from bitlab.packed.encoder import FusedLayer, fuse
from bitlab.packed.format import CONFIG, METHOD, WEIGHTS, PackedConfig, metadata, verify
from bitlab.packed.layers import PackedEmbedding, PackedLinear

# How the names begin of what lies beside the weights: the files of a tokenizer, and the model card.
BESIDE = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece", "README.md")


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
    packed.config.quantization_config = PackedConfig.of(model.config.quantization_config)
    packed.hf_quantizer = PackedQuantizer(packed.config.quantization_config)
    _replace(packed)
    return nn.Module.float(packed)  # the model's own float() refuses for whatever was loaded with a quantizer


def save_packed(model: PreTrainedModel, folder: str | os.PathLike, beside: Iterable[Path] = ()) -> Path:
    """Write a binary model to `folder` as a packed one; returns the path of the file with the weights.

    Args:
        model: the result of training (see `pack`), or a packed model.
        folder: made whole or not at all; `load_packed` and `AutoModelFor*.from_pretrained` read it. A packed model
            that is there is replaced.
        beside: files to copy into it, a tokenizer's for instance.
    Raises:
        BitlabError: as `pack` does, for a folder of anything else, and where it can't be written.
    """
    path = Path(folder).expanduser()
    _spare(path)
    if not isinstance(bit_config(model), PackedConfig):
        model = pack(model)
    with writing(path), whole_folder(path.resolve()) as partial:
        model.save_pretrained(partial)
        for file in beside:
            shutil.copyfile(file, partial / file.name)
    return path / WEIGHTS


def _spare(path: Path) -> None:
    """Refuse a folder that holds anything but a packed model, which can be made again."""
    if not path.exists():
        return
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else [path.name]
    foreign = [name for name in names if name not in (WEIGHTS, CONFIG) and not name.startswith(BESIDE)]
    try:
        packed = not names or read_model_config(path)[1] == METHOD
    except BitlabError:
        packed = False
    if foreign or not packed:
        what = f"other files ({foreign[0]})" if foreign else "another model"
        raise BitlabError(f"{str(path)!r} holds {what}, which would be lost: choose another folder, or delete it")


def load_packed(folder: str | os.PathLike) -> PreTrainedModel:
    """The packed model in `folder`, or the shipped one of that name: called as the float one is, with the same outputs.

    Everything is checked first (see `verify`): a corrupt, truncated or newer file is one BitlabError.
    """
    path = shipped(folder) or Path(folder).expanduser()
    method = read_model_config(path)[1]
    if method == "bitlab":
        raise BitlabError(f"{str(folder)!r} holds a latent checkpoint: make a packed one of it with bitlab pack")
    if method != METHOD:
        raise BitlabError(f"{str(folder)!r} holds no packed model: make one with bitlab pack CHECKPOINT OUT")
    return load_folder(path, dtype=torch.float32)


def pack_folder(source: str | os.PathLike, out: str | os.PathLike) -> dict:
    """Pack the trained model in a folder, with its tokenizer if it has one: what `bitlab pack` does.

    Returns:
        dict: `precision`, `fused`, `bytes` of the packed file, `float_bytes` of the float weights, `times_smaller`.
    Raises:
        BitlabError: for a folder that holds no trained binary model, and as `save_packed` does.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if out.exists() and source.exists() and out.samefile(source):
        raise BitlabError("CHECKPOINT and OUT are the same folder: the latent weights would be lost")
    method = read_model_config(source)[1]
    if method != "bitlab":
        state = "packed already" if method == METHOD else "no binary model"
        raise BitlabError(
            f"the checkpoint in {str(source)!r} is {state}: give the folder of a trained one, runs/.../W1A1"
        )
    with quiet():
        model = load_folder(source)
        path = save_packed(model, out, [file for file in source.iterdir() if file.name.startswith(BESIDE)])
        packed = load_packed(out)
    result = {
        "precision": packed.config.quantization_config.precision,
        "fused": is_fused(packed),
        "bytes": path.stat().st_size,
        "float_bytes": sum(4 * p.numel() for n, p in model.named_parameters() if "_binarizer." not in n),
    }
    return result | {"times_smaller": round(result["float_bytes"] / result["bytes"], 1)}


def is_fused(model: PreTrainedModel) -> bool:
    """Whether all encoder layers of a packed model run fused, from codes to codes."""
    layers = [module for module in model.modules() if isinstance(module, FusedLayer)]
    return bool(layers) and len(layers) == sum(hasattr(m, "probs_binarizer") for m in model.modules())


def _check(model: PreTrainedModel) -> None:
    config = bit_config(model)
    if config is None:
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
            model.set_submodule(name, PackedLinear(module).eval())
        elif isinstance(module, BinaryEmbedding) and module.weight_bits == 1:
            model.set_submodule(name, PackedEmbedding(module).eval())
    for module in model.modules():
        if isinstance(module, ElasticBinarizer):  # all are initialized: that is not worth an entry in the file
            module.register_buffer("initialized", torch.ones((), dtype=torch.bool), persistent=False)
    fuse(model)
    model.set_attn_implementation(attention.NAME)


# ------------------------------------------------------------------------------------------------ transformers


@register_quantizer(METHOD)
class PackedQuantizer(BinaryQuantizer):
    """Lets plain `AutoModelFor*.from_pretrained(folder)` load a packed model, and `save_pretrained` write one."""

    is_trainable = False
    requires_calibration = True  # transformers' word for: there is no making a packed model of a float checkpoint

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        if not checkpoint_files or len(checkpoint_files) != 1 or not str(checkpoint_files[0]).endswith(".safetensors"):
            raise BitlabError(f"a packed model is one file, {WEIGHTS}: pack the checkpoint again")
        stored = verify(checkpoint_files[0], model.config)
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
        # config.json as `save_pretrained` is about to write it
        config = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
        return None, metadata(model.state_dict(), config)


def _check_shapes(model: PreTrainedModel, stored: dict) -> None:
    """Every tensor of the encoder is in the file, with its shape and type; heads may differ, as in transformers."""
    prefix = f"{model.base_model_prefix}."
    inside = {name.removeprefix(prefix): value for name, value in stored.items()}
    for name, tensor in model.base_model.state_dict().items():
        if name not in inside:
            if name.startswith("pooler."):
                continue
            raise BitlabError(f"the packed model has no {name!r}: config.json and {WEIGHTS} do not fit together")
        if name.endswith(".alpha") and inside[name] == (tensor.dtype, ()):  # as files of older versions have it
            continue
        if inside[name] != (tensor.dtype, tuple(tensor.shape)):
            raise BitlabError(
                f"{name!r} of the packed model is {inside[name][0]} {list(inside[name][1])} and should be "
                f"{tensor.dtype} {list(tensor.shape)}: config.json and {WEIGHTS} do not fit together"
            )
