"""Tables of text, for everything that bitlab prints in columns."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of cells as lines with straight columns.

    Args:
        rows: cells of text, as many in each row; the head, if any, is the first.
        left: so many columns stand on their left edge, the others on their right.

    Returns:
        One line a row, without spaces at its end.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if place < left else str.rjust for place in range(len(widths))]
    return ["  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths)).rstrip() for row in rows]
