"""Data of the experiments: GLUE, SQuAD, and a generator of sample tasks in their shape."""

from bitlab.terminal.startup import lazy

_MODULES = {
    "encode": "bitlab.data.glue",
    "hub_reachable": "bitlab.data.sources",
    "load_glue": "bitlab.data.glue",
    "load_own": "bitlab.data.own",
    "load_squad": "bitlab.data.squad",
    "read_own": "bitlab.data.own",
    "resolve_source": "bitlab.data.sources",
}

__all__ = list(_MODULES)
__getattr__ = lazy(__name__, _MODULES)
