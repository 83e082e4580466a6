"""`bitlab bench`: packed inference against what a user would run instead, on the same shapes, interleaved.

Times are medians over the rounds, and ratios are medians of those within a round (`bitlab.bench.timing`), with their
quartiles. Contenders:

    float32           torch as it comes
    float32, medium   `torch.set_float32_matmul_precision("medium")`: on some processors another library, and its
                      inner precision may be bf16
    bf16              weights and activations
    int8 dynamic      `torch.ao.quantization.quantize_dynamic`
    onnxruntime, OpenVINO   see `bitlab.bench.engines`; encoders only
    fake-quant        the binary model as it is trained: bits in floats
    packed, int8      W1A1 without a C compiler
    packed, c         W1A1 by the kernel; packed, c, W1A2 and packed, c, W1A4 with more bits

"best other" is the fastest of those that are not ours, on this shape and this processor.
"""

import copy
import functools
import os
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from transformers import BertConfig, BertModel

from bitlab.bench.engines import Contender, engines
from bitlab.bench.settings import BenchSettings
from bitlab.bench.timing import measure, ratio, session
from bitlab.compiled import matmul_precision
from bitlab.config import BitConfig
from bitlab.convert import binarize
from bitlab.experiments import environment
from bitlab.layers import BinaryLinear
from bitlab.packed import backends, kernel
from bitlab.packed.checkpoint import pack
from bitlab.packed.layers import PackedLinear

SHAPES = ((768, 768, True), (768, 3072, True), (3072, 768, False))  # inputs, outputs, signed inputs: BERT-base
ENCODERS = {"base": (768, 12, 3072), "minilm": (384, 12, 1536)}  # width, heads, inner width
BASELINE = "float32"
OURS = ("fake-quant", "packed")


def bench(
    layers: int = 12,
    length: int = 128,
    batches=(1, 8),
    rounds: int = 7,
    threads: int = 1,
    shape: str = "base",
    others: bool = True,
) -> dict:
    """Measure linear layers and an encoder; returns what `bitlab bench --json` prints.

    Args:
        layers: of the encoder; 0 measures the linear layers alone.
        length: tokens of a sentence. batches: sentences in one call of the encoder.
        rounds: each contender runs once a round; there are three times as many for the linear layers.
        threads: of torch, the kernel and the engines.
        shape: of the encoder, "base" (BERT-base) or "minilm" (half as wide).
        others: also the engines of `bitlab.bench.engines` that are installed.
    Returns:
        Machine, limits and "rows", one for each contender on each shape: median and least seconds; how many times
        faster than float32 and than the best of the others, each with its quartiles; bytes of its weights; processor.
    Raises:
        BitlabError: for what is out of the bounds of `BenchSettings`.
    """
    BenchSettings(layers, length, tuple(batches), rounds, threads, shape)
    with session(threads), torch.inference_mode():
        limits = processor_limits()
        rows = linear_rows(length, 3 * rounds)  # they are short, and a busy machine is uneven
        found, absent = (encoder_rows(layers, length, batches, rounds, shape, others)) if layers else ([], {})
        name, why = backends.backend_status()
    return {
        **environment.report(threads),
        "kernel": {"name": name, "why": why},
        "clock": "processor time" if threads == 1 else "wall",
        "limits": limits,
        "absent": absent,
        "rows": rows + found,
    }


def processor_limits() -> dict[str, float] | None:
    """Multiply-accumulates a second of one core, in registers alone: fp32 FMA, and xor + popcount + add. int8 is 4
    times fp32, as its instruction does four products a lane. None without a compiled kernel."""
    if not _c():
        return None
    library = kernel.load()
    rounds, best = 2000, {"float32": float("inf"), "bits": float("inf")}
    for _ in range(200):
        for name, call in (
            ("float32", lambda: library.bitlab_limit_float(rounds, 0.99, 0.01)),
            ("bits", lambda: library.bitlab_limit_bits(rounds, 12345)),
        ):
            start = time.perf_counter()
            done = call()
            best[name] = min(best[name], time.perf_counter() - start) if done else float("inf")
    speed = {"float32": rounds * 256 / best["float32"], "bits": rounds * 256 * 32 / best["bits"]}
    return {"float32": speed["float32"], "int8": 4 * speed["float32"], "bits": speed["bits"]}


def linear_rows(length: int, rounds: int) -> list[dict]:
    """The three linear layers of a BERT-base layer, floats in and floats out."""
    rows = []
    for width, outputs, signed in SHAPES:
        linear, x = nn.Linear(width, outputs), torch.randn(length, width)
        binary = BinaryLinear.from_float(linear, signed=signed).eval()
        given = {"bf16": x.bfloat16()}
        found = _contenders(linear, {1: (binary, PackedLinear(binary))})
        calls = {name: functools.partial(each.run, given.get(name, x)) for name, each in found.items()}
        rows += _rows(f"linear {length}x{width} -> {outputs}", measure(calls, rounds, at_least=0.002))
    return rows


def encoder_rows(layers: int, length: int, batches, rounds: int, shape: str, others: bool) -> tuple[list[dict], dict]:
    """An encoder with its embeddings, of random weights and without a pooler; and which engines are absent, why."""
    width, heads, inner = ENCODERS[shape]
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner}
    config = BertConfig(num_hidden_layers=layers, vocab_size=1000, **sizes)
    model, ours = BertModel(config, add_pooling_layer=False).eval(), {}
    first = torch.randint(0, config.vocab_size, (1, length))
    for bits in (1, 2, 4):
        binary = binarize(copy.deepcopy(model), BitConfig(1, bits))
        binary.train()(first)  # starts the alphas
        ours[bits] = binary.eval(), pack(binary)
    found, absent = engines(copy.deepcopy(model), first, torch.get_num_threads()) if others else ({}, {})
    contenders, rows = _contenders(model, ours) | found, []
    for batch in batches:
        ids = torch.randint(0, config.vocab_size, (batch, length))
        calls = {name: functools.partial(c.run, ids) for name, c in contenders.items()}
        times = measure(calls, rounds)
        what = f"{layers} layer{'s' * (layers != 1)}, length {length}, batch {batch}"
        sizes = {name: contender.bytes for name, contender in contenders.items()}
        rows += _rows(what if shape == "base" else f"{what}, {shape}", times, sizes)
    return rows, absent


def _contenders(model: nn.Module, ours: dict[int, tuple[nn.Module, nn.Module]]) -> dict[str, Contender]:
    """What torch makes of a float model, and what bitlab does: (as it is trained, packed), by activation bits."""
    half = copy.deepcopy(model).bfloat16()
    found = {
        BASELINE: Contender(model, _bytes(model)),
        "float32, medium": Contender(_within(matmul_precision, "medium", model), _bytes(model)),
        "bf16": Contender(half, _bytes(half)),
    }
    if quantized := _int8(model):
        found["int8 dynamic"] = Contender(quantized)
    for bits, (binary, packed) in ours.items():
        if bits == 1:
            found["fake-quant"] = Contender(binary, _bytes(binary))
            found["packed, int8"] = Contender(_within(backends.use, "int8", packed), _bytes(packed))
        if _c():
            name = "packed, c" if bits == 1 else f"packed, c, W1A{bits}"
            found[name] = Contender(_within(backends.use, _kernel(), packed), _bytes(packed))
    return found


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _rows(what: str, times: dict[str, list[float]], sizes: dict[str, int | None] | None = None) -> list[dict]:
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    best = min((name for name in times if not name.startswith(OURS)), key=median.get)
    rows, here = [], environment.processor()
    for name, seconds in times.items():
        faster, against = (_faster(times[other], seconds) for other in (BASELINE, best))
        row = {"what": what, "contender": name, "seconds": median[name], "fastest": min(seconds)}
        row |= {"ratio": faster[0], "spread": faster[1:], "best_other": best}
        row |= {"against_best": against[0], "against_best_spread": against[1:]}
        rows.append(row | {"bytes": (sizes or {}).get(name), "processor": here})
    return sorted(rows, key=lambda row: row["ratio"])


def _faster(others: list[float], own: list[float]) -> tuple[float, float, float]:
    """How many times faster: median, lower and upper quartile of the ratios within a round."""
    ratios = [other / mine for other, mine in zip(others, own, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return 1 / ratio(own, others), low, high


def _int8(model: nn.Module) -> nn.Module | None:
    """Torch's dynamic quantization, or None where this torch or this processor lacks it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            from torch.ao.quantization import quantize_dynamic

            # which takes the layers inside of what it is given
            return quantize_dynamic(nn.Sequential(copy.deepcopy(model)), {nn.Linear}, torch.qint8)
    except (ImportError, RuntimeError):
        return None


def _within(setting: Callable, value: str, model: nn.Module) -> Callable:
    """The model, called with something set."""

    def call(x):
        with setting(value):
            return model(x)

    return call


def _c() -> bool:
    return backends.available()[0] in backends.COMPILED


def _kernel() -> str:
    """The kernel that BITLAB_KERNEL names, or "c": chosen for each call."""
    named = os.environ.get(backends.VARIABLE, "")
    return named if named in backends.COMPILED else "c"


def table(result: dict) -> str:
    """A bench result for people to read."""
    head = f"{environment.told(result['machine'])}, torch {result['versions']['torch']}"
    lines = [f"{head}, kernel {result['kernel']['name']} ({result['kernel']['why']})"]
    if limits := result["limits"]:
        numbers = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in limits.items())
        lines.append(f"limits of one core in 10^9 multiply-accumulates a second: {numbers}")
    lines += [f"absent: {name} ({why})" for name, why in result["absent"].items()]
    what = None
    for row in result["rows"]:
        if row["what"] != what:
            what = row["what"]
            lines += ["", f"{what} (best other: {row['best_other']})"]
        size = f"{row['bytes'] / 2**20:8.1f} MiB" if row["bytes"] else " " * 12
        low, high = row["against_best_spread"]
        times = f"{row['seconds'] * 1e3:10.3f} ms {row['ratio']:7.2f} x {row['against_best']:7.2f} y"
        lines.append(f"  {row['contender']:18} {times} ({low:.2f} to {high:.2f}) {size}")
    note = "x: times faster than float32; y: than the best other, with quartiles; medians over rounds, times too"
    return "\n".join([*lines, "", note])
