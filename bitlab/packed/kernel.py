"""Finds a C compiler, builds `kernel.c` at first use, and loads it.

The library lies in the user's cache folder under a name made of the source, the compiler and the processor, so that a
change of any builds a new one. A second process that builds at the same time does no harm: each builds into a file of
its own, and the rename that publishes it is atomic.
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from pathlib import Path

from bitlab.compiled import find_compiler
from bitlab.errors import BitlabError

SOURCE = Path(__file__).with_name("kernel.c")
HEADERS = tuple(SOURCE.with_name(f"{name}.h") for name in ("codes", "floats", "bytes", "tiles", "bits", "linear", "attention"))
# No contraction: a multiply-add is one rounding only where the source says so. Nobody reads errno or traps.
BASE_FLAGS = ("-std=gnu99", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Tried in order: Apple's clang may lack OpenMP (then one thread computes), an odd compiler may not know "native".
CHOICES = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
LONG, INT, FLOAT, POINTER = ctypes.c_long, ctypes.c_int, ctypes.c_float, ctypes.c_void_p


class Sizes(ctypes.Structure):
    """`Sizes` of kernel.c."""

    _fields_ = [
        *((name, LONG) for name in ("batch", "length", "width", "heads", "inner", "bits", "kernel", "threads")),
        *((name, LONG) for name in ("lanes", "rounds_once", "mask_example", "mask_head", "mask_query")),
        *((name, FLOAT) for name in ("scaling", "eps")),
    ]


SIGNATURES = {
    "bitlab_room": ([ctypes.POINTER(Sizes), INT], ctypes.c_int64),
    "bitlab_encoder": ([POINTER, LONG, ctypes.POINTER(Sizes), POINTER, POINTER, POINTER, ctypes.c_int64], INT),
    "bitlab_linear": ([POINTER, ctypes.POINTER(Sizes), INT, POINTER, POINTER, POINTER, ctypes.c_int64], INT),
    "bitlab_rows": ([POINTER, LONG, POINTER, POINTER, LONG, LONG, POINTER], INT),
    "bitlab_has_kernel": ([INT], INT),
    "bitlab_limit_bits": ([LONG, ctypes.c_uint32], ctypes.c_uint32),
    "bitlab_limit_float": ([LONG, FLOAT, FLOAT], FLOAT),
}
_lock = threading.Lock()


def load() -> ctypes.CDLL:
    """The compiled kernel, built if need be. Raises BitlabError, in one line, where that cannot be done."""
    with _lock:
        return _load()


def compiler() -> str | None:
    """The C compiler to use: CC if set, else the first of cc, gcc and clang that is there."""
    return find_compiler("CC", "cc", "gcc", "clang")


@functools.cache
def cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor, by names in small letters; {} elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in fields}


def cache_folder() -> Path:
    """Where built kernels lie: `bitlab` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlab"


@functools.cache
def _load() -> ctypes.CDLL:
    path = compiler()
    if path is None:
        raise BitlabError("no C compiler found (install gcc or clang)")
    folder = cache_folder()
    target = folder / f"kernel-{_key(path)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _build(path, target)
        try:
            return _open(target)
        except OSError:  # a damaged file in the cache: once more
            _build(path, target)
            return _open(target)
    except OSError as error:
        raise BitlabError(f"the cache folder cannot be used ({error.strerror or error})") from error


def _key(path: str) -> str:
    """Names one build: source, flags, compiler version and processor."""
    try:
        version = subprocess.run([path, "--version"], capture_output=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BitlabError(f"the C compiler {Path(path).name} does not run ({type(error).__name__})") from error
    sources = (file.read_bytes() for file in (SOURCE, *HEADERS))
    parts = (*sources, repr((BASE_FLAGS, CHOICES)).encode(), path.encode(), version, _processor())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _processor() -> bytes:
    """Whatever decides what `native` means: the model and its instruction sets."""
    wanted = ("model name", "flags", "cpu family", "model", "features", "cpu implementer", "cpu part")
    told = [f"{name}: {value}" for name, value in cpuinfo().items() if name in wanted]
    return "\n".join(told or (platform.machine(), platform.processor(), platform.node())).encode()


def _build(path: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / "kernel.so"
        for flags in CHOICES:
            command = [path, *BASE_FLAGS, *flags, str(SOURCE), "-o", str(built), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            except subprocess.SubprocessError as error:
                raise BitlabError(f"the C compiler {Path(path).name} did not finish") from error
            if done.returncode == 0:
                os.replace(built, target)
                return
    complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
    reason = complaint.split("error:")[-1].strip() or f"exit code {done.returncode}"
    raise BitlabError(f"the C compiler {Path(path).name} failed ({reason})")


def _open(target: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(target))
    for name, (arguments, result) in SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"{target.name} is damaged") from error
        function.argtypes, function.restype = arguments, result
    return library
