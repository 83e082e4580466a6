"""The file of a packed model, and the checks before anything in it is believed.

    *.weight of 1-bit layers   uint8 (N, ceil(K / 8)): row-major, little-endian bit order, 1 is +1, the rest 0
    *.weight_scale             float32, m: one number a layer, one a row of the word embedding
    everything else            float32, under the names of the float model

The file is safetensors, so nothing is ever unpickled. `quantization_config` in config.json says `quant_method`
"bitlab_packed", precision, `bit_order` and `format_version`. The file's metadata holds a SHA-256 over all tensors and
what config.json said when it was written, so a flipped bit in either file is found.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig
from transformers.quantizers.auto import register_quantization_config

from bitlab.config import BitConfig
from bitlab.errors import BitlabError
from bitlab.files import read_json

METHOD = "bitlab_packed"
FORMAT_VERSION = 1
BIT_ORDER = "little"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
VOLATILE = ("transformers_version", "dtype")  # in config.json, and no output depends on them
# Settings that results depend on, under the names of any of the supported architectures: what the metadata of older
# files hold of config.json.
SETTINGS = (
    *("model_type", "vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id"),
    *("hidden_size", "dim", "embedding_size", "intermediate_size", "hidden_dim", "num_hidden_layers", "n_layers"),
    *("num_attention_heads", "n_heads", "hidden_act", "activation", "layer_norm_eps", "problem_type"),
    *("summary_type", "summary_use_proj", "summary_activation"),
)


@register_quantization_config(METHOD)
class PackedConfig(BitConfig):
    """`quantization_config` of a packed model: a `BitConfig`, and how the bits lie in the file."""

    latent = False

    def __init__(self, *args, format_version: int = FORMAT_VERSION, bit_order: str = BIT_ORDER, **kwargs):
        if not isinstance(format_version, int) or format_version < 1 or bit_order != BIT_ORDER:
            raise BitlabError(
                f"config.json names packed format {format_version!r} with bit order {bit_order!r}, "
                f"which does not exist: pack the model again"
            )
        if format_version > FORMAT_VERSION:
            raise BitlabError(
                f"this packed model has format version {format_version}, and this bitlab reads up to "
                f"{FORMAT_VERSION}: update bitlab"
            )
        super().__init__(*args, **kwargs)
        if self.weight_bits != 1:
            raise BitlabError(
                f"config.json names a packed model of {self.weight_bits}-bit weights: only 1-bit ones are"
            )
        self.quant_method = METHOD
        self.format_version, self.bit_order = format_version, bit_order

    @classmethod
    def of(cls, config: BitConfig) -> "PackedConfig":
        return cls(**{key: value for key, value in config.to_dict().items() if key != "quant_method"})


def metadata(tensors: Mapping[str, torch.Tensor], config: dict) -> dict[str, str]:
    """The metadata of the safetensors file that holds these tensors beside this config.json."""
    return {"bitlab_format": str(FORMAT_VERSION), "sha256": _digest(tensors), "config": _covered(config)}


def _covered(config: dict) -> str:
    """What config.json says, but for what no output depends on, as one line of JSON."""
    return json.dumps({key: value for key, value in config.items() if key not in VOLATILE}, sort_keys=True)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Over names, types, shapes and bytes; the order in the file does not matter."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
        hashed.update(f"{name} {DTYPES[tensor.dtype]} {list(tensor.shape)} {len(data)}\n".encode())
        hashed.update(data)
    return hashed.hexdigest()


def verify(path: str | Path, config: PretrainedConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Check a packed safetensors file and the config.json beside it; returns {name: (dtype, shape)}.

    Structure (by safetensors itself), checksum and finite scales are checked, and that config.json is the one that
    the file was written with. Reads the file once, in place. Any fault is one BitlabError.
    """
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            notes, names = file.metadata() or {}, file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, "its header or its length makes no sense") from error
    if "bitlab_format" not in notes:
        raise BitlabError(
            f"{path.name} in {str(path.parent)!r} is no packed model of bitlab: pack the checkpoint again"
        )
    version = notes["bitlab_format"]
    if version.isdecimal() and int(version[:9]) > FORMAT_VERSION:
        raise BitlabError(f"{path.name} has packed format {version[:9]}, newer than this bitlab reads: update it")
    strange = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if version != str(FORMAT_VERSION) or strange:
        raise _damaged(path, f"the type of {strange[0]!r:.80} makes no sense" if strange else "its format version")
    if notes.get("format") != "pt" or _digest(tensors) != notes.get("sha256"):
        raise _damaged(path, "its checksum does not fit its contents")
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and not tensor.isfinite().all():
            raise BitlabError(
                f"{name!r} in {path.name} is not finite: the model was not trained to an end, pack another"
            )
    written = read_json(path.with_name(CONFIG), remedy="copy it again")
    fits = notes["config"] == _covered(written) if "config" in notes else notes.get("settings") == _settings(config)
    if not fits:
        raise BitlabError(f"config.json does not belong to {path.name} in {str(path.parent)!r}: copy both again")
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _damaged(path: Path, how: str) -> BitlabError:
    return BitlabError(f"{path.name} in {str(path.parent)!r} is damaged ({how}): copy it again")


def _settings(config: PretrainedConfig) -> str:
    """What older files hold in place of all of config.json."""
    found = {name: getattr(config, name) for name in SETTINGS if hasattr(config, name)}
    quantization = config.quantization_config
    quantization = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
    kept = {key: value for key, value in quantization.items() if key != "history"}
    return json.dumps({**found, "quantization": kept}, sort_keys=True, default=str)
