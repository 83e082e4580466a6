"""Results: the `stored` and published ones, the `rows` that they make, the `tables` that print these."""

from bitlab.results.stored import CONSTANT, FOLDER, collect, load, published, store
from bitlab.results.table import report

__all__ = ["CONSTANT", "FOLDER", "collect", "load", "published", "report", "store"]
