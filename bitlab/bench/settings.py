"""What `bitlab bench` is asked."""

from dataclasses import dataclass

from bitlab.terminal.options import check, option


@dataclass(frozen=True)
class BenchSettings:
    """Sizes and repetitions of a measurement. Where a number is None, each bench has its own."""

    layers: int | None = option(
        None,
        "of the encoder; packed, 0: linear layers alone",
        default_words="12, with train 6",
        at_least=0,
        at_most=1000,
    )
    length: int = option(128, "tokens of a sentence", at_least=1, at_most=512)
    batch: tuple[int, ...] = option(
        (),
        "sentences at once, may be given several times",
        default_words="1, then 8; with train 16",
        at_least=1,
        at_most=4096,
    )
    rounds: int | None = option(
        None, "runs of each contender, in turns", default_words="7, with train 5", at_least=1, at_most=10**6
    )
    threads: int = option(1, "of torch and of the kernel", at_least=1, at_most=1024)
    shape: str = option("base", "packed: of the encoder", choices=("base", "minilm"))
    growth: bool = option(False, "train: how the step's time grows with length, batch and layers")
    tasks: str | None = option(None, "train: real tokens a second on the GLUE files in this folder", path=True)

    def __post_init__(self):
        check(self)
