"""Results: the `stored` runs as a DataFrame of their `stages`, the `table` computed from it, and the published rows."""

from bitlab.results.stages import frame
from bitlab.results.stored import (
    CONSTANT,
    OWN,
    SHIPPED,
    collect,
    command,
    commands,
    experiment,
    load,
    measurement,
    records,
    store,
)
from bitlab.results.table import GLUE, SQUAD, published, report, tabulate

__all__ = [
    "CONSTANT",
    "GLUE",
    "OWN",
    "SHIPPED",
    "SQUAD",
    "collect",
    "command",
    "commands",
    "experiment",
    "frame",
    "load",
    "measurement",
    "published",
    "records",
    "report",
    "store",
    "tabulate",
]
