"""Finds a C compiler, builds `kernel.c` at first use, and loads it.

The library lies in the user's cache folder under a name made of the source, the compiler, the processor, and its own
digest: a change of any of the first builds a new one, and a file that is not what its name says is built again. It is
written beside, and published by a rename, so that processes that build at the same time do no harm. A cache folder
that somebody else owns or may write to is not used: then a private temporary folder serves, for this process.
"""

import contextlib
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
    "bitlab_planes": ([], INT),
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


def cache_folder() -> Path | None:
    """Where built kernels lie: `bitlab` in XDG_CACHE_HOME, or in ~/.cache; made if need be.

    None where there is no such place, or where others than this user could have put something there.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlab"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: no HOME, and no entry in the list of users
        return None
    mine = not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)
    return folder if mine and os.access(folder, os.W_OK) else None


@functools.cache
def _load() -> ctypes.CDLL:
    path = compiler()
    if path is None:
        raise BitlabError("no C compiler found (install gcc or clang)")
    try:
        if folder := cache_folder():
            with contextlib.suppress(OSError):  # a folder that nothing runs from, a full disk: once more elsewhere
                return _open(_cached(path, folder))
        with tempfile.TemporaryDirectory() as private:  # what is loaded stays when the folder goes
            return _open(_build(path, Path(private), "kernel"))
    except OSError as error:
        raise BitlabError(f"the C kernel cannot be built or loaded ({error.strerror or error})") from error


def _cached(path: str, folder: Path) -> Path:
    """The library in the cache if it is whole, else a new one."""
    name = f"kernel-{_key(path)}"
    for found in folder.glob(f"{name}-*.so"):
        if found.name == f"{name}-{_digest(found)}.so":
            return found
        found.unlink(missing_ok=True)
    return _build(path, folder, name)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:20]


def _key(path: str) -> str:
    """Names one build: source, flags, compiler version and processor."""
    try:
        version = subprocess.run([path, "--version"], capture_output=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BitlabError(f"the C compiler {Path(path).name} does not run ({type(error).__name__})") from error
    sources = (file.read_bytes() for file in (SOURCE, *sorted(SOURCE.parent.glob("*.h"))))
    parts = (*sources, repr((BASE_FLAGS, CHOICES)).encode(), path.encode(), version, _processor())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _processor() -> bytes:
    """Whatever decides what `native` means: the model and its instruction sets."""
    wanted = ("model name", "flags", "cpu family", "model", "features", "cpu implementer", "cpu part")
    told = [f"{name}: {value}" for name, value in cpuinfo().items() if name in wanted]
    return "\n".join(told or (platform.machine(), platform.processor(), platform.node())).encode()


def _build(path: str, folder: Path, name: str) -> Path:
    """Compile into `folder`, under this name and the digest of what came out; returns the file."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / "kernel.so"
        for flags in CHOICES:
            command = [path, *BASE_FLAGS, *flags, str(SOURCE), "-o", str(built), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, timeout=300)
            except subprocess.SubprocessError as error:
                raise BitlabError(f"the C compiler {Path(path).name} did not finish") from error
            if done.returncode == 0 and built.exists():
                return _publish(built, folder / f"{name}-{_digest(built)}.so")
    said = done.stderr.decode(errors="replace")
    complaint = next((line for line in said.splitlines() if "error" in line), said.strip()[:200])
    reason = complaint.split("error:")[-1].strip() or f"exit code {done.returncode}"
    raise BitlabError(f"the C compiler {Path(path).name} failed ({reason})")


def _publish(built: Path, target: Path) -> Path:
    """Bring a file under its name, whole and on the disk."""
    with open(built, "rb") as file:
        os.fsync(file.fileno())
    os.replace(built, target)
    return target


def _open(target: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(target))
    for name, (arguments, result) in SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"{target.name} is damaged") from error
        function.argtypes, function.restype = arguments, result
    return library
