"""The packed file: safetensors with 1-bit weights, its config entry, and the checks before anything is believed.

    *.weight of 1-bit layers   uint8 (N, ceil(K / 8)): row-major, little-endian bit order, 1 is +1, the rest 0
    *.weight_scale             float32, m: one number a layer, one a row of the word embedding
    everything else            float32, under the names of the float model

`quantization_config` in config.json says `quant_method` "bitlab_packed", precision, `bit_order` and `format_version`.
The safetensors metadata holds a SHA-256 over all tensors and the settings of config.json that results depend on, so a
flipped bit in either file is found. Nothing is ever unpickled.
"""

import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PretrainedConfig
from transformers.quantizers.auto import register_quantization_config

from bitlab.config import BitConfig
from bitlab.errors import BitlabError

METHOD = "bitlab_packed"
FORMAT_VERSION = 1
BIT_ORDER = "little"
WEIGHTS = "model.safetensors"
DTYPES = {"F32": torch.float32, "U8": torch.uint8}
LONGEST_HEADER = 2**24
# Settings of a model that its results depend on, under the names of any of the supported architectures.
SETTINGS = (
    *("model_type", "vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id"),
    *("hidden_size", "dim", "embedding_size", "intermediate_size", "hidden_dim", "num_hidden_layers", "n_layers"),
    *("num_attention_heads", "n_heads", "hidden_act", "activation", "layer_norm_eps", "problem_type"),
    *("summary_type", "summary_use_proj", "summary_activation"),
)
Entry = tuple[str, tuple[int, ...], memoryview]


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


def settings(config: PretrainedConfig) -> str:
    """What results depend on in config.json, as one line of JSON."""
    found = {name: getattr(config, name) for name in SETTINGS if hasattr(config, name)}
    quantization = config.quantization_config
    quantization = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
    kept = {key: value for key, value in quantization.items() if key != "history"}
    return json.dumps({**found, "quantization": kept}, sort_keys=True, default=str)


def metadata(tensors: Mapping[str, torch.Tensor], config: PretrainedConfig) -> dict[str, str]:
    """The metadata of the safetensors file that holds these tensors."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries = (
        (name, (names[tensor.dtype], tuple(tensor.shape), tensor.detach().contiguous().flatten().view(torch.uint8)))
        for name, tensor in tensors.items()
    )
    digest = _digest((name, (kind, shape, data.numpy().data)) for name, (kind, shape, data) in entries)
    return {"bitlab_format": str(FORMAT_VERSION), "sha256": digest, "settings": settings(config)}


def _digest(entries: Iterable[tuple[str, Entry]]) -> str:
    """Over names, types, shapes and bytes; the order in the file does not matter."""
    hashed = hashlib.sha256()
    for name, (kind, shape, data) in sorted(entries, key=lambda entry: entry[0]):
        hashed.update(f"{name} {kind} {list(shape)} {len(data)}\n".encode())
        hashed.update(data)
    return hashed.hexdigest()


def read_config(folder: Path) -> dict:
    """config.json of a packed folder, or one BitlabError."""
    path = folder / "config.json"
    if not path.is_file():
        raise BitlabError(f"there is no packed model in {str(folder)!r}: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        method = (config.get("quantization_config") or {}).get("quant_method")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BitlabError(
            f"config.json in {str(folder)!r} is damaged ({type(error).__name__}): copy it again"
        ) from error
    if method == "bitlab":
        raise BitlabError(f"{str(folder)!r} holds a latent checkpoint: make a packed one of it with bitlab pack")
    if method != METHOD:
        raise BitlabError(f"{str(folder)!r} holds no packed model: make one with bitlab pack CHECKPOINT OUT")
    try:
        PackedConfig.from_dict(config["quantization_config"])
    except TypeError as error:
        raise BitlabError(f"quantization_config in {str(folder)!r} makes no sense: copy config.json again") from error
    return config


def verify(path: str | Path, config: PretrainedConfig | None = None) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Check a packed safetensors file; returns {name: (dtype, shape)}.

    Structure, checksum and finite scales are checked, and that `config` is the one that the file was written with.
    Reads the file once, in place. Any fault is one BitlabError.
    """
    path = Path(path)
    if not path.is_file():
        raise BitlabError(f"there is no packed model in {str(path.parent)!r}: it has no {path.name}")
    with open(path, "rb") as file:
        try:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:
            raise _damaged(path, "it is empty") from error
    entries, notes = _parse(path, view)
    _check(path, entries, notes, config)
    return {name: (DTYPES[kind], shape) for name, (kind, shape, _) in entries.items()}


def _damaged(path: Path, how: str) -> BitlabError:
    return BitlabError(f"{path.name} in {str(path.parent)!r} is damaged ({how}): copy it again")


def _parse(path: Path, view: memoryview) -> tuple[dict[str, Entry], dict]:
    length = int.from_bytes(view[:8], "little") if len(view) >= 8 else LONGEST_HEADER
    if not 2 <= length <= min(LONGEST_HEADER, len(view) - 8):
        raise _damaged(path, "its header does not fit into the file")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        notes = header.pop("__metadata__", {})
        found = {
            name: (entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"]))
            for name, entry in header.items()
        }
        order = sorted(found.items(), key=lambda item: item[1][2])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header cannot be read") from error
    if not isinstance(notes, dict) or "bitlab_format" not in notes:
        raise BitlabError(
            f"{path.name} in {str(path.parent)!r} is no packed model of bitlab: pack the checkpoint again"
        )
    entries, at = {}, 0
    for name, (kind, shape, (start, end)) in ((n, e) for n, e in order if _sane(path, n, e)):
        size = math.prod(shape) * (DTYPES[kind].itemsize)
        if start != at or end - start != size or 8 + length + end > len(view):
            raise _damaged(path, f"{name[:80]!r} does not lie where it should, or the file is cut off")
        entries[name] = (kind, shape, view[8 + length + start : 8 + length + end])
        at = end
    if 8 + length + at != len(view):
        raise _damaged(path, f"{len(view) - 8 - length - at} bytes too many")
    return entries, notes


def _sane(path: Path, name: str, entry: tuple) -> bool:
    kind, shape, offsets = entry
    whole = all(isinstance(n, int) and n >= 0 for n in (*shape, *offsets))
    if kind not in DTYPES or not whole or len(offsets) != 2:
        raise _damaged(path, f"the entry of {name[:80]!r} makes no sense")
    return True


def _check(path: Path, entries: dict[str, Entry], notes: dict, config: PretrainedConfig | None) -> None:
    version = notes["bitlab_format"]
    if version != str(FORMAT_VERSION):
        if str(version).isdecimal() and int(str(version)[:9]) > FORMAT_VERSION:
            raise BitlabError(
                f"{path.name} has packed format {str(version)[:9]}, newer than this bitlab reads: update it"
            )
        raise _damaged(path, "its format version makes no sense")
    if notes.get("format") != "pt" or _digest(entries.items()) != notes.get("sha256"):
        raise _damaged(path, "its checksum does not fit its contents")
    for name, (kind, _, data) in entries.items():
        if kind == "F32" and not np.isfinite(np.frombuffer(data, "<f4")).all():
            raise BitlabError(
                f"{name!r} in {path.name} is not finite: the model was not trained to an end, pack another"
            )
    if config is not None and notes.get("settings") != settings(config):
        raise BitlabError(f"config.json does not belong to {path.name} in {str(path.parent)!r}: copy both again")
