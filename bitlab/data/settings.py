"""What `bitlab augment` and `bitlab train` are asked about the data."""

from dataclasses import dataclass

from bitlab.terminal.options import SEED, check, option


@dataclass(frozen=True)
class Settings:
    """How to augment."""

    tries: int = option(help="new sentences tried for each sentence", at_least=1, at_most=10**5)
    probability: float = option(0.4, "that a word is replaced, in each try", above=0, at_most=1)
    candidates: int = option(15, "at most so many for a word", at_least=1, at_most=10**4)
    seed: int = option(0, "of all choices", **SEED)

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class OwnData:
    """How to read data of your own, see `bitlab.data.load_own`."""

    text: str = option(help="column of the text, or two for pairs: premise,hypothesis", required=True)
    label: str = option(help="column of the label; several columns of 0 and 1 are several labels", required=True)
    dev: str | None = option(None, "a file to evaluate on", path=True, default_words="the data's own, or a share")
    dev_share: float = option(0.1, "share of the rows to evaluate on, without --dev", above=0, below=1)
    kind: str | None = option(
        None,
        "what a label is",
        choices=("single_label", "multi_label", "regression"),
        default_words="by the column's values",
    )

    def __post_init__(self):
        check(self)
