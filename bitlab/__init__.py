"""bitlab: a laboratory for 1-bit transformers."""

from bitlab.terminal import startup

__version__ = "0.1.0"

_MODULES = {
    "BinaryEmbedding": "bitlab.layers",
    "BinaryLinear": "bitlab.layers",
    "BitConfig": "bitlab.config",
    "BitlabError": "bitlab.errors",
    "DistillationConfig": "bitlab.methods",
    "DistillationTrainer": "bitlab.distillation",
    "ElasticBinarizer": "bitlab.layers",
    "binarize": "bitlab.convert",
    "load_glue": "bitlab.data",
    "load_squad": "bitlab.data",
    "set_precision": "bitlab.convert",
}

__all__ = [*_MODULES, "packed", "rivals"]
__getattr__ = startup.lazy(__name__, _MODULES)

if startup.is_command_line():
    startup.at_ctrl_c(startup.leave)  # `bitlab.cli` imports the rest
else:
    from bitlab import packed, rivals  # so that from_pretrained knows the methods and packed checkpoints
