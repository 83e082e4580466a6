"""Yours beside bitlab's: what the reader wrote in a cell, held against the library's."""

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bitlab.compiled import worth_it_from
from bitlab.packed.kernel import compiler

FEW = 10  # lines of a tensor each


def as_written():
    """While the block runs, formulas run as they are written at any size: compiled, they add in another order."""
    return worth_it_from(sys.maxsize)


def assert_equal(
    yours: Callable, bitlabs: Callable, *, tolerance: float = 0.0, title: str = "", **inputs: Tensor
) -> None:
    """Assert that two functions, or two layers, agree in values and in gradients; print a line for each tensor.

    Both are called on copies of the inputs, in the order in which these are named, and both get the same random
    gradient from above. Compared are the output (of a model the logits), the gradient of every float input, and those
    of the parameters that both have under the same name; more than a handful of these are told in one line. For
    instance::

        assert_equal(yours=my_elastic, bitlabs=elastic, x=x, alpha=alpha)

    Args:
        yours, bitlabs: functions, or layers with parameters.
        tolerance: largest difference allowed, as a share of the largest entry; 0 asks for equality bit for bit.
        title: print one line for all tensors that begins so, instead of one for each.
        inputs: tensors by name.

    Raises:
        AssertionError: names the tensor and the difference.
    """
    with as_written():
        mine, theirs = _ran(yours, inputs), _ran(bitlabs, inputs)
    if not theirs["value"].requires_grad:
        theirs = {"value": theirs["value"]}  # a formula without a gradient: there is nothing more to compare
    common = [name for name in theirs if name in mine]
    short = len(common) > FEW
    for name in common:
        a, b = mine[name], theirs[name]
        assert a.shape == b.shape, f"{name}: yours is {tuple(a.shape)}, bitlab's {tuple(b.shape)}"
        same = torch.equal(a, b)
        difference = 0.0 if same else ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
        assert difference <= tolerance, f"{name}: yours and bitlab's differ by {difference:.1e} of the largest entry"
        verdict = "equal, bit for bit" if same else f"equal to within {tolerance:.0e}"
        if not title and (not short or name == "value"):
            print(f"{name:<22} {tuple(b.shape)!s:<18} {verdict}")
    if title:
        print(f"{title}: {', '.join(common)}: equal to within {tolerance:.0e}")
    elif short:
        print(f"{len(common) - 1} gradients: all equal {f'to within {tolerance:.0e}' if tolerance else 'bit for bit'}")


def _ran(function: Callable, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output by name, and the gradients of inputs and parameters (zeros where there are none)."""
    given = {name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    learns = dict(function.named_parameters()) if isinstance(function, nn.Module) else {}
    for parameter in learns.values():
        parameter.grad = None
    by_name = isinstance(function, nn.Module) and hasattr(function, "config")  # as transformers' models want it
    value = function(**given) if by_name else function(*given.values())
    value = getattr(value, "logits", value)
    if value.requires_grad:
        above = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
        value.backward(above)
    leaves = {name: x for name, x in (given | learns).items() if x.requires_grad}
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return {"value": value} | {f"gradient of {name}": grad for name, grad in gradients.items()}


def compile_c(source: str) -> ctypes.CDLL | None:
    """C that a cell wrote, compiled for this processor and loaded; prints the command. None where no compiler is."""
    if compiler() is None:
        print("no C compiler here: install gcc or clang to run this loop, NumPy stands in for it")
        return None
    flags = ["-O3", "-march=native", "-shared", "-fPIC", "-x", "c", "-"]
    with tempfile.TemporaryDirectory() as folder:  # what is loaded stays when the folder goes
        library = Path(folder) / "loop.so"
        subprocess.run([compiler(), *flags, "-o", str(library)], input=source, text=True, check=True)
        print(Path(compiler()).name, *flags, "-o", library.name)
        return ctypes.CDLL(str(library))
