"""`bitlab doctor`: what is installed and found on this machine, and what to do where something is absent."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from bitlab import compiled
from bitlab.data.sources import DATA_VARIABLE, hub_offline, hub_reachable
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.models import MINILM_ADVICE, minilm_folder
from bitlab.packed import backend_status


def findings() -> Iterator[str]:
    """One line a finding: versions, machine, what runs fast here, models and data sources."""
    yield "versions  " + ", ".join(f"{name} {number}" for name, number in environment.versions().items())
    info = environment.machine()
    yield f"machine   {info['processor']}, {info['threads']} thread{'s' * (info['threads'] != 1)}"
    yield _line("gpu", torch.cuda.is_available(), info.get("gpu", "none"), "not needed; training is faster with one")
    yield _line(
        "compiler",
        compiled.compiler() is not None,
        _name(compiled.compiler()),
        "install g++ or clang: training is faster",
    )
    yield _line("compiled", *compiled.status(), f"unset {compiled.VARIABLE}, and see compiler")
    backend, why = backend_status()
    by_torch = backend in ("int8", "float")
    yield _line("packed", not by_torch, f"{backend}: {why}", "install a C compiler (gcc or clang): inference is faster")
    for source in describe_sources():
        yield _line(source.kind, source.available, f"{source.name}: {source.detail}", source.advice)


def _name(path: str | None) -> str:
    return "none" if path is None else path.rsplit("/", 1)[-1]


def _line(what: str, good: bool, detail, advice: str) -> str:
    return f"{what:9} {'ok  ' if good else '--  '} {detail}" + ("" if good or not advice else f" -> {advice}")


class SourceReport(NamedTuple):
    """One line of `bitlab doctor`: a model or data source, whether it is there, and what to do when it is not."""

    kind: str
    name: str
    available: bool
    detail: str
    advice: str


def describe_sources() -> list[SourceReport]:
    """The models and data that can be used here and now."""
    try:
        minilm = SourceReport("model", "minilm", True, f"pretrained encoder, {minilm_folder().parent.name}", "")
    except BitlabError as error:
        minilm = SourceReport("model", "minilm", False, str(error), MINILM_ADVICE)
    online = hub_reachable()
    state = "answers" if online else "switched off (offline)" if hub_offline() else "does not answer"
    hub_advice = "" if online else "not needed; unset HF_HUB_OFFLINE or connect to use hub models and data"
    named = os.environ.get(DATA_VARIABLE)
    has_folder = bool(named) and Path(named).expanduser().is_dir()
    folder_detail = "not set" if not named else named if has_folder else f"{named} does not exist"
    folder_advice = "" if has_folder else f"set {DATA_VARIABLE} to a folder with the original GLUE and SQuAD files"
    return [
        SourceReport("model", "sample", True, "random BERT, 2 layers of width 128", ""),
        minilm,
        SourceReport("model", "hub", online, f"huggingface.co {state}", hub_advice),
        SourceReport("data", "sample", True, "made by bitlab.data.sample", ""),
        SourceReport("data", DATA_VARIABLE, has_folder, folder_detail, folder_advice),
        SourceReport("data", "hub", online, f"huggingface.co {state}", hub_advice),
    ]
