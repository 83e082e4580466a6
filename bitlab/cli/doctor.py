"""`bitlab doctor`: what is installed and found on this machine, and what to do where something is absent."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from bitlab import compiled
from bitlab.bench.timing import measure, ratio
from bitlab.data.sources import DATA_VARIABLE, hub_reachable, hub_state
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.models import minilm_folder
from bitlab.packed import backend_status


def findings() -> Iterator[str]:
    """One line a finding: versions, machine, what runs fast here, models and data sources."""
    yield "versions  " + ", ".join(f"{name} {number}" for name, number in environment.versions().items())
    info = environment.machine()
    yield f"machine   {environment.told(info)}"
    yield _line("gpu", torch.cuda.is_available(), info.get("gpu", "none"), "not needed; training is faster with one")
    if torch.backends.mps.is_available():
        yield _line("mps", False, "there, but bitlab does not use it", "nothing: nobody has tried it there")
    yield _line("compiled", *compiled.status(), "training is faster with compiled formulas")
    yield _bf16()
    backend, why = backend_status()
    yield _line(
        "packed", backend not in ("int8", "float"), f"{backend}: {why}", "inference is faster with the C kernel"
    )
    yield _line("model", True, "sample: random BERT, 2 layers of width 128")
    yield _minilm()
    yield _line("data", True, "sample: made by bitlab.data.sample")
    yield _data_folder()
    advice = "not needed; unset HF_HUB_OFFLINE or connect to use its models and data"
    yield _line("hub", hub_reachable(), f"huggingface.co {hub_state()}", advice)


def _line(what: str, good: bool, detail: str, advice: str = "") -> str:
    return f"{what:9} {'ok' if good else '--'}   {detail}" + ("" if good else f" -> {advice}")


def _bf16() -> str:
    """Whether mixed precision is worth it: on processors without AMX products of bf16 may be slower than float32's."""
    products, device = {}, "cpu" if environment.CPU else "cuda"
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(*shape, dtype=dtype, device=device) for shape in ((512, 384), (384, 1536)))
        products[dtype] = partial(torch.matmul, a, b)
    times = measure(products, rounds=5)
    taken = ratio(times[torch.bfloat16], times[torch.float32])
    return _line("bf16", taken < 1, f"products take {taken:.2f} of float32's time", "train without --bf16 here")


def _minilm() -> str:
    try:
        return _line("model", True, f"minilm: pretrained encoder, {minilm_folder().parent.name}")
    except BitlabError as error:
        reason, _, advice = str(error).partition(": ")
        return _line("model", False, f"minilm: {reason}", advice)


def _data_folder() -> str:
    named = os.environ.get(DATA_VARIABLE)
    there = bool(named) and Path(named).expanduser().is_dir()
    detail = named if there else f"{named} does not exist" if named else "not set"
    advice = f"set {DATA_VARIABLE} to a folder with the original GLUE and SQuAD files"
    return _line("data", there, f"{DATA_VARIABLE}: {detail}", advice)
