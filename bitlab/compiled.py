"""Compiled formulas: the element-wise functions of `binarizers.py`, compiled by torch.compile where that pays.

Run one by one, the operations of the elastic function cost almost half of a training step, all of it memory
traffic. Compiled into one loop each they cost next to nothing. Compiling takes seconds (once; torch keeps the
result on disk), so small tensors, such as those of the sample model, run the formulas as they are written.

`BITLAB_COMPILE` decides: "auto" (the default: compile for tensors of 1,048,576 numbers and more, and in long trainings
for smaller ones, if there is a compiler), "on" or "off".
"""

import functools
import os
import shutil
import types
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitlab.errors import BitlabError

VARIABLE = "BITLAB_COMPILE"
WORTH_IT = 2**20
_broken: list[str] = []  # why compiling failed in this process, if it did


def mode() -> str:
    """What BITLAB_COMPILE says: "auto", "on" or "off". Another word is a BitlabError."""
    value = os.environ.get(VARIABLE, "auto").lower()
    if value not in ("auto", "on", "off"):
        raise BitlabError(f"{VARIABLE} is {value!r}: set it to auto, on or off")
    return value


@functools.cache
def find_compiler(variable: str, *names: str) -> str | None:
    """The path of what an environment variable names, else of the first of these programs that is there, else None."""
    named = (os.environ.get(variable), *names)
    return next((found for name in named if name and (found := shutil.which(name))), None)


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU, or None."""
    return find_compiler("CXX", "g++", "clang++")


def status() -> tuple[bool, str]:
    """(whether compiled formulas run here, one line that says why), for `bitlab doctor`."""
    if mode() == "off":
        return False, f"{VARIABLE}=off"
    if _broken:
        return False, f"torch.compile failed: {_broken[0]}"
    if compiler() is None and not torch.cuda.is_available():
        return False, "no C++ compiler found (install g++ or clang)"
    return True, "torch.compile" + ("" if mode() == "on" else f", for tensors of {WORTH_IT:,} numbers and more")


def compiled(formula):
    """Decorate a function of tensors so that it runs compiled where that pays.

    The function as written stays reachable as `.formula`; it also runs inside somebody else's torch.compile, which
    compiles it anyway.
    """

    @functools.cache
    def variant(which: tuple):
        """One compiled function for each choice of tensors, bits and set; of a code object of its own, because
        torch.compile gives up on one that it has compiled eight times, however many functions share it."""
        code = formula.__code__.replace()
        return torch.compile(
            types.FunctionType(code, formula.__globals__, formula.__name__, formula.__defaults__), dynamic=True
        )

    @functools.wraps(formula)
    def call(*args):
        tensors = (a for a in args if isinstance(a, torch.Tensor))
        if torch.compiler.is_compiling() or not _worth_it(max(tensors, key=torch.Tensor.numel)):
            return formula(*args)
        # detached: torch.compile takes the shape of a Parameter for a constant and would compile again for the next
        plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        which = tuple("tensor" if isinstance(a, torch.Tensor) else a for a in plain)
        try:
            return variant(which)(*plain)
        except Exception as error:  # a compiler that is there but does not work: the formula still does
            _broken.append(str(error).strip().splitlines()[0][:120] or type(error).__name__)
            return formula(*args)

    call.formula = formula
    return call


def _worth_it(x: torch.Tensor) -> bool:
    wanted = mode()
    if (
        wanted == "off"
        or _broken
        or x.device.type not in ("cpu", "cuda")
        or type(x) not in (torch.Tensor, torch.nn.Parameter)  # a fake tensor has no memory to run on
        or (wanted == "auto" and x.numel() < WORTH_IT)
    ):
        return False
    return x.is_cuda or compiler() is not None


@contextmanager
def worth_it_from(numbers: int):
    """Compile for tensors of so many numbers and more while the block runs: long work pays for smaller ones, too."""
    global WORTH_IT
    before, WORTH_IT = WORTH_IT, numbers
    try:
        yield
    finally:
        WORTH_IT = before


def matmul_precision(level: str):
    """Set how float32 products are computed ("highest", "high", "medium"), and set it back at the end of the block.

    In "medium" a processor may take bf16 or TF32 factors with float32 sums. Binary products stay exact: -1, 0, 1 and
    other small integers are exact in every one of these formats.
    """
    return _meanwhile(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, level)


@contextmanager
def fast_products():
    """Float products as trainings take them while the block runs: "medium", and on a CPU attention by plain products.

    Torch's flash attention multiplies head by head on a CPU. In "medium" each of these little products costs more
    for its call than for its numbers: a step of MiniLM takes half as long again.
    """
    with matmul_precision("medium"), nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH):
        yield


def torch_threads(number: int):
    """So many threads of torch, on the CPU, while the block runs."""
    return _meanwhile(torch.get_num_threads, torch.set_num_threads, number)


@contextmanager
def _meanwhile(get: Callable, put: Callable, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)
