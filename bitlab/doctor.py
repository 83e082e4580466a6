"""`bitlab doctor`: what is installed and found on this machine, and what to do where something is absent."""

from collections.abc import Iterator

import torch

from bitlab import environment, fused
from bitlab.models import describe_sources
from bitlab.packed import backend_status


def findings() -> Iterator[str]:
    """One line a finding: versions, machine, what runs fast here, models and data sources."""
    yield "versions  " + ", ".join(f"{name} {number}" for name, number in environment.versions().items())
    info = environment.machine()
    yield f"machine   {info['processor']}, {info['threads']} thread{'s' * (info['threads'] != 1)}"
    yield _line("gpu", torch.cuda.is_available(), info.get("gpu", "none"), "not needed; training is faster with one")
    yield _line(
        "compiler", fused.compiler() is not None, _name(fused.compiler()), "install g++ or clang: training is faster"
    )
    yield _line("fused", *fused.status(), f"unset {fused.VARIABLE}, and see compiler")
    backend, why = backend_status()
    yield _line(
        "packed", backend == "c", f"{backend}: {why}", "install a C compiler (gcc or clang): inference is faster"
    )
    for source in describe_sources():
        yield _line(source.kind, source.available, f"{source.name}: {source.detail}", source.advice)


def _name(path: str | None) -> str:
    return "none" if path is None else path.rsplit("/", 1)[-1]


def _line(what: str, good: bool, detail, advice: str) -> str:
    return f"{what:9} {'ok  ' if good else '--  '} {detail}" + ("" if good or not advice else f" -> {advice}")
