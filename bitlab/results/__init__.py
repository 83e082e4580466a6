"""Results: the `stored` runs as a DataFrame, the `table` that is computed from them, and the published rows."""

from bitlab.results.stored import CONSTANT, OWN, SHIPPED, collect, frame, load, measurement, records, store
from bitlab.results.table import GLUE, SQUAD, published, report, tabulate

__all__ = [
    "CONSTANT",
    "GLUE",
    "OWN",
    "SHIPPED",
    "SQUAD",
    "collect",
    "frame",
    "load",
    "measurement",
    "published",
    "records",
    "report",
    "store",
    "tabulate",
]
