"""What this machine and installation are, in a few words without paths: for result files and `bitlab doctor`."""

import platform
from importlib.metadata import version

import torch
from accelerate import PartialState

import bitlab
from bitlab.packed.kernel import cpuinfo

CPU = not torch.cuda.is_available()
FLAGS = ("amx_int8", "amx_bf16", "avx512_vpopcntdq", "avx512_vnni", "avx512_bf16", "avx512f", "avx_vnni", "avx2")
FLAGS += ("asimddp", "asimd")  # ARM's names
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "scikit-learn")


def processes() -> PartialState:
    """The processes of this run: one, or as many as torchrun or `accelerate launch` started.

    Without a GPU accelerate takes each of them for a run of its own unless it is told, here, that CPUs are meant.
    """
    return PartialState(cpu=CPU)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    ours = {"python": platform.python_version(), "bitlab": bitlab.__version__}
    return ours | {package: version(package) for package in PACKAGES}


def machine() -> dict[str, str | int]:
    """Processor, threads in use, and GPU if any."""
    info: dict[str, str | int] = {"processor": processor(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def told(machine: dict[str, str | int]) -> str:
    """ "Intel Xeon, 2 threads" of a `machine`."""
    return f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}"


def report(threads: int) -> dict[str, dict]:
    """What a measurement with so many threads says of where it was made."""
    return {"machine": machine() | {"threads": threads}, "versions": versions()}


def processor() -> str:
    """The processor's name, and those of its instruction sets that decide times and, in bf16, sums."""
    info = cpuinfo()
    words = " ".join(info.values()).split()
    flags = " ".join(flag for flag in FLAGS if flag in words)
    return info.get("model name", platform.processor() or platform.machine()) + (f" ({flags})" if flags else "")
