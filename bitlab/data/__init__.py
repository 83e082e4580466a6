"""Data of the experiments: GLUE, SQuAD, and a generator of sample tasks in their shape."""

from bitlab.data.glue import encode, load_glue
from bitlab.data.own import load_own, read_own
from bitlab.data.sources import hub_reachable, resolve_source
from bitlab.data.squad import load_squad

__all__ = ["encode", "hub_reachable", "load_glue", "load_own", "load_squad", "read_own", "resolve_source"]
