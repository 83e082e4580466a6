"""bitlab: a laboratory for 1-bit transformers."""

import importlib
import importlib.util

from bitlab import packed, rivals  # so that from_pretrained knows the other methods and packed checkpoints
from bitlab.config import BitConfig, DistillationConfig
from bitlab.convert import binarize, set_precision
from bitlab.errors import BitlabError
from bitlab.layers import BinaryEmbedding, BinaryLinear, ElasticBinarizer

__version__ = "0.1.0"

# Data and training import datasets and accelerate, which take seconds: they load when first asked for.
_LAZY = {
    "load_glue": "bitlab.data",
    "load_squad": "bitlab.data",
    "DistillationTrainer": "bitlab.distillation",
}

__all__ = [
    "BinaryEmbedding",
    "BinaryLinear",
    "BitConfig",
    "BitlabError",
    "DistillationConfig",
    "ElasticBinarizer",
    "rivals",
    "binarize",
    "packed",
    "set_precision",
    *_LAZY,
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"bitlab.{name}"):
        return importlib.import_module(f"bitlab.{name}")  # bitlab.cost.summary(model) after a plain import bitlab
    raise AttributeError(f"module 'bitlab' has no attribute {name!r}")
