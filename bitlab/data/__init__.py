"""Data of the experiments: GLUE, SQuAD, and a generator of sample tasks in their shape."""

from bitlab.data.glue import encode, load_glue
from bitlab.data.sources import hub_reachable, resolve_source
from bitlab.data.squad import load_squad

__all__ = ["encode", "hub_reachable", "load_glue", "load_squad", "resolve_source"]
