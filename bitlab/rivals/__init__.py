"""The rivals of the published tables, reached like BiT: `BitConfig(method="bibert")` or `"binarybert"`."""

from bitlab.rivals import bibert, binarybert

__all__ = ["bibert", "binarybert"]
