"""Timing on machines that others use too: contenders run in turns, and ratios are taken within a turn."""

import logging
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

from bitlab.compiled import torch_threads
from bitlab.files import quiet

logger = logging.getLogger(__name__)


@contextmanager
def session(threads: int):
    """Torch on so many threads, seeded and without messages while the block runs, and as it was afterwards."""
    with torch_threads(threads), quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def measure(
    contenders: dict[str, Callable], rounds: int, at_least: float = 0.0, clock: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of one call, for each contender and round; short calls are repeated for `at_least` seconds.

    Each round runs every contender once, one after the other, so that a busy machine is busy for all of them alike.
    The first two calls of each are not counted: they compile, allocate and initialise. Where one thread works on a CPU
    the clock is the process's own time, which leaves out what other programs do meanwhile, else the wall's.
    """
    if clock is None:
        alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
        clock = time.process_time if alone else time.perf_counter
    repeats = {}
    for name, call in contenders.items():
        logger.info("warming up: %s", name)
        call()
        repeats[name] = max(1, round(at_least / _seconds(call, 1, clock)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    logger.info("measuring, %d rounds", rounds)
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(_seconds(call, repeats[name], clock))
    return times


def _seconds(call: Callable, repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def ratio(times: list[float], baseline: list[float]) -> float:
    """How many times longer than the baseline: the median of the ratios within a round."""
    return statistics.median(own / base for own, base in zip(times, baseline, strict=True))
