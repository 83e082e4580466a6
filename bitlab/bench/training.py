"""`bitlab bench train`: what a step of binary distillation costs, beside a plain fine-tuning step on the same batch.

The contenders are listed in `bitlab.bench.steps`. Ratios are taken within a round (`bitlab.bench.timing`).
"""

import os
import random
import statistics
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product

import torch

from bitlab.bench.steps import BASELINE, CONTENDERS, KEPT, KEPT_BF16, MINILM, OURS, Shape, Step
from bitlab.bench.timing import measure, ratio
from bitlab.distillation.sampling import LONG_STRETCH, BucketSampler
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.models import quiet

STANDARD_ERROR = 2


def bench(shape: Shape = MINILM, rounds: int = 5, threads: int = 1, names=tuple(CONTENDERS)) -> dict:
    """Measure a step of each contender; returns what `bitlab bench train --json` prints.

    Each row: name, median seconds, ratio to the baseline's (median over the rounds), microseconds a token, and MiB:
    the most that tensors took at once during a step, weights and optimizer state included.
    """
    with _session(rounds, threads):
        steps = {name: Step(shape, CONTENDERS[name]) for name in names}
        times = measure(steps, rounds)
        memory = {name: peak_memory(step) for name, step in steps.items()}
    tokens = shape.batch * shape.length
    rows = [
        {
            "name": name,
            "seconds": statistics.median(seconds),
            "ratio": ratio(seconds, times[BASELINE]),
            "microseconds_a_token": 1e6 * statistics.median(seconds) / tokens,
            "mib": memory[name] / 2**20,
        }
        for name, seconds in times.items()
    ]
    return _report(threads) | {"shape": asdict(shape), "rounds": rounds, "rows": rows}


@contextmanager
def _session(rounds: int, threads: int):
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise BitlabError(f"{name} is {value}: it must be 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(before)


def _report(threads: int) -> dict:
    return {"machine": environment.machine() | {"threads": threads}, "versions": environment.versions()}


def peak_memory(step: Step) -> int:
    """Bytes that tensors take at once during a step, at the most: weights, gradients, optimizer and what comes and
    goes. On a GPU the allocator's own count; on a CPU the sum of the allocations that torch's profiler saw."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with _silent(STANDARD_ERROR), torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + _resident(step)


@contextmanager
def _silent(number: int):
    """Keep what is written past Python, the profiler's own lines, off a file descriptor."""
    copy, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
        yield
    finally:
        os.dup2(copy, number)
        os.close(nowhere), os.close(copy)


def _resident(step: Step) -> int:
    """Bytes of what stays between two steps: weights of student and teacher, and the optimizer's state."""
    models = [step.model, *getattr(step.trainer, "teachers", [])]
    tensors = [p for model in models for p in model.parameters()]
    tensors += [t for state in step.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


GROWTH = {"length": (32, 64, 128, 256, 512), "batch": (1, 4, 16, 64), "layers": (2, 4, 6, 12)}


def growth(shape: Shape = MINILM, rounds: int = 3, threads: int = 1, axes: dict = GROWTH) -> dict:
    """Seconds of a distillation step and of the plain one, at their fastest, as length, batch or layers grow."""
    found = {}
    with _session(rounds, threads):
        for axis, values in axes.items():
            found[axis] = []
            for value in values:
                steps = {name: Step(replace(shape, **{axis: value}), CONTENDERS[name]) for name in (BASELINE, OURS)}
                times = measure(steps, rounds)
                found[axis].append({axis: value} | {name: min(times[name]) for name in steps})
    return _report(threads) | {"shape": asdict(shape), "rounds": rounds, "growth": found}


ORDERS = {"random order": 1, "by length": LONG_STRETCH}  # batches that are sorted together
FIXED_LENGTH_RATIO = 2.6  # the least that a step of the released program costs beside plain fine-tuning, as measured


def tasks(source: str, names=("cola", "sst2", "mrpc", "stsb", "rte"), rounds: int = 8, threads: int = 1) -> dict:
    """Real tokens a second on GLUE tasks: batches as they are trained on, against batches of the task's fixed length.

    For each task `rounds` batches of real lengths (the task's own batch size), in random order and by length
    (`bitlab.distillation.sampling`), each padded to its longest sentence; beside each, a plain fine-tuning step at
    the task's maximal length. Our step looks up what the teacher said, as in every epoch but the first. "times" is
    how many times more real tokens a second our step takes than a fixed-length step at 2.6 times the plain one would.
    """
    from bitlab.data.tasks import get_glue_task
    from bitlab.experiments.prepared import prepare
    from bitlab.models import load_tokenizer

    rows, tokenizer = [], load_tokenizer("minilm")
    with _session(rounds, threads):
        for name in names:
            task = get_glue_task(name)
            data = prepare(task, source, tokenizer)
            lengths = [len(ids) for ids in data.train["input_ids"]]
            shape = Shape(batch=task.batch_size, length=task.max_length)
            rows.append({"task": name, "max_length": task.max_length} | _race(shape, lengths, rounds))
    return _report(threads) | {"against": FIXED_LENGTH_RATIO, "tasks": rows}


def _race(shape: Shape, lengths: list[int], rounds: int) -> dict:
    choose = random.Random(0)
    plain = Step(shape, CONTENDERS[BASELINE])
    row = {"real_length": statistics.mean(lengths)}
    for order, stretch in ORDERS.items():
        places = torch.tensor(list(BucketSampler(lengths, shape.batch, stretch=stretch)))
        batches = choose.sample([[lengths[i] for i in batch] for batch in places.split(shape.batch)], rounds)
        real = statistics.mean(map(sum, batches))
        row[order] = {"padded_length": statistics.mean(map(max, batches))}
        for name in (KEPT, KEPT_BF16):
            ours = Step(shape, CONTENDERS[name])
            turns = iter([batches[0], *batches, *batches])  # the first warms up
            times = measure({BASELINE: plain, name: lambda o=ours, t=turns: o(shape.inputs(max(next(t))))}, rounds)
            fixed = FIXED_LENGTH_RATIO * statistics.mean(times[BASELINE])
            mine = statistics.mean(times[name])
            row[order][name] = {"real_tokens_a_second": real / mine, "times": fixed / mine}
    return row


def table(result: dict) -> str:
    """A result of `bench`, `growth` or `tasks` for people to read."""
    machine = result["machine"]
    head = f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}, torch "
    lines = [head + result["versions"].get("torch", "")]
    if "rows" in result:
        shape = result["shape"]
        lines.append("{layers} layers, width {width}, batch {batch}, length {length}".format(**shape))
        lines += [
            f"  {r['name']:32} {r['ratio']:5.2f} x  {r['seconds'] * 1e3:8.1f} ms  {r['microseconds_a_token']:7.1f} us "
            f"a token  {r['mib']:7.0f} MiB"
            for r in result["rows"]
        ]
    for axis, points in result.get("growth", {}).items():
        lines += [f"  {axis} {p[axis]:4}: {p[OURS] * 1e3:9.1f} ms ({p[OURS] / p[BASELINE]:.2f} x)" for p in points]
    for r in result.get("tasks", []):
        lines.append(f"  {r['task']}: sentences of {r['real_length']:.1f} tokens, fixed length {r['max_length']}")
        for order, name in product(ORDERS, (KEPT, KEPT_BF16)):
            rate = r[order][name]
            lines.append(
                f"    {order:12} {name:32} {rate['real_tokens_a_second']:6,.0f} real tokens a second, "
                f"{rate['times']:4.1f} times"
            )
    if rates := result.get("tasks"):
        for order, name in product(ORDERS, (KEPT, KEPT_BF16)):
            mean = statistics.geometric_mean(r[order][name]["times"] for r in rates)
            lines.append(f"  geometric mean: {order:12} {name:32} {mean:4.1f} times")
    return "\n".join(lines)
