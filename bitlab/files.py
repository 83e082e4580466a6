"""The boundary that reads and writes files: one line for whatever may fail there, whole writes, owned folders.

A run's folder (`claim`) belongs to the experiment that its experiment.json describes, and to one process at a time.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bitlab.errors import BitlabError

CONFIG, LOCK = "experiment.json", ".lock"
PARTIAL, OLD = ".bitlab-partial", ".bitlab-old"  # names of ours alone: a backup may be called model.old
ELSEWHERE = "choose another --output"
ROOM = 2**16  # bytes; a disk with less free is full
ZOO = Path(__file__).with_name("zoo")  # trained models that come with the package, a folder each


# ------------------------------------------------------------------------------------------------ one line


@contextmanager
def one_line(what: str, remedy: str, *kinds: type[Exception]):
    """Make one line, "what (reason): remedy", of errors of these kinds.

    A BitlabError is one already, and goes through, unless it is named among them.

    Raises:
        BitlabError: in their place.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, BitlabError) and BitlabError not in kinds:
            raise
        raise BitlabError(f"{what} ({reason(error)}): {remedy}") from error


def reading(path: Path, remedy: str = "give another file"):
    """`one_line` of whatever reading a file may raise: no access, no text, no JSON, nested too deep."""
    return one_line(f"{path} can't be read", remedy, OSError, ValueError, RecursionError)


@contextmanager
def writing(path: Path, remedy: str = "choose another place"):
    """Make one line of whatever writing may raise: a full disk or quota, no access, a name too long, a limit.

    Raises:
        BitlabError: naming what can't be written (`path`, unless the system names a file), the reason and `remedy`.
    """
    try:
        yield
    except (BitlabError, BrokenPipeError):  # a pipe is no file of ours
        raise
    except Exception as error:
        cause = _of_the_system(error)
        if _disk_full(cause, path):
            raise BitlabError(f"the disk is full at {path}: free some space and run the same command again") from error
        if cause is not None:
            raise BitlabError(f"{cause.filename or path} can't be written ({reason(cause)}): {remedy}") from error
        raise


def reason(error: BaseException) -> str:
    """The first line of what an error says, without the path that an OSError repeats."""
    if isinstance(error, KeyError):
        return f"no {error}"
    said = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return said[0].strip()[:200] if said else type(error).__name__


def _of_the_system(error: Exception) -> OSError | None:
    """The system's error behind one: safetensors puts it into words, torch.save leaves its reason out."""
    for each in (error, error.__cause__, error.__context__):
        if isinstance(each, OSError):
            return each
        if found := re.search(r"(?:os error|code:) (\d+)", str(each)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        if "PytorchStreamWriter" in str(each) or "inline_container" in str(each):
            return OSError("torch.save could not write all of it")
    return None


def _disk_full(cause: OSError | None, path: Path) -> bool:
    """Whether there is no room; the disk itself is asked too, which a half-written file still fills."""
    if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    place = next((place for place in (path, *path.parents) if os.path.exists(place)), ".")
    return shutil.disk_usage(place).free < ROOM


def expanded(path: str | os.PathLike) -> Path:
    """A path with the home folder in place of "~" or "~name".

    Raises:
        BitlabError: where there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BitlabError(f"the home folder in {os.fspath(path)!r} is nobody's: write the path out") from error


# ------------------------------------------------------------------------------------------------ whole files


def write_json(path: Path, content: dict | list) -> None:
    """`write_bytes` of an object as JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path, kind: type = dict, remedy: str = "delete it, or choose another folder"):
    """The content of a JSON file, None if there is none.

    Args:
        kind: dict or list, what the file has to hold.
        remedy: what to do about a damaged file, for the error's line.
    Raises:
        BitlabError: if the file can't be read, or holds something else.
    """
    with reading(path, remedy):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if not isinstance(content, kind):
            raise ValueError(f"it holds {type(content).__name__}, expected {kind.__name__}")
        return content


def read_model_config(folder: Path) -> tuple[dict, str | None]:
    """(config.json of a model's folder, its quantization method: "bitlab", "bitlab_packed", another's, or None).

    Raises:
        BitlabError: if there is none, or it can't be read.
    """
    path = Path(folder) / "config.json"
    config = read_json(path, remedy="copy it again")
    if config is None:
        raise BitlabError(f"there is no model in {str(folder)!r}: it has no config.json")
    with reading(path, "copy it again"):
        quantization = config.get("quantization_config") or {}
        if not isinstance(quantization, dict):
            raise ValueError("its quantization_config makes no sense")
        return config, quantization.get("quant_method")


def shipped(name: str | os.PathLike) -> Path | None:
    """The folder of the trained model of that name that comes with bitlab, "sst2-w1a1"; None if none does."""
    name = os.fspath(name)
    is_name = os.path.basename(name) == name and not name.startswith(".")
    return ZOO / name if is_name and (ZOO / name / "config.json").is_file() else None


def zoo() -> list[str]:
    """Names of the trained models that come with bitlab."""
    return sorted(config.parent.name for config in ZOO.glob("*/config.json"))


def load_folder(folder: Path, **options):
    """The model in a folder, of the class of transformers that its config.json names. Code in the folder is never
    run, and weights are read from safetensors alone: a pickle could hold anything.

    Raises:
        BitlabError: whatever keeps it from loading.
    """
    kind = model_class(read_model_config(folder)[0].get("architectures"), folder)
    with loading(folder):
        return kind.from_pretrained(folder, **SAFELY, **options).eval()


def model_class(architectures, where: str | os.PathLike) -> type:
    """The class of transformers that a config.json names, or a BitlabError."""
    import transformers

    name = architectures[0] if isinstance(architectures, list) and architectures else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise BitlabError(
            f"config.json in {str(where)!r} names no model class of transformers ({name!r}): copy it again, or load "
            f"it with the from_pretrained of its own class"
        )
    return kind


# For every from_pretrained of a folder.
SAFELY = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}


def loading(where: str | os.PathLike):
    """`one_line` of whatever transformers raises for a folder or hub id that it can't load, in a dozen kinds."""
    return one_line(f"model {str(where)!r} can't be loaded", "give another folder", Exception)


@contextmanager
def quiet():
    """Loading says what weights are new and draws a bar; here that is by design, and debris in a notebook."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def whole_folder(path: Path):
    """Yields a folder to fill; it takes the place of `path` when the block ends well, and vanishes otherwise.

    What was at `path` stays until the new folder is complete.
    """
    partial, old = path.with_name(path.name + PARTIAL), path.with_name(path.name + OLD)
    if old.exists() and not path.exists():  # killed between the two renames below
        os.replace(old, path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ ownership


@contextmanager
def claim(folder: Path, config: dict, clear: Callable[[Path], None] | None = None):
    """Own `folder` for the experiment that `config` describes, while the block runs.

    A new folder gets `config` written into it; one with the same configuration is gone on with, after `clear(folder)`
    if that is given.

    Raises:
        BitlabError: if the folder belongs to an experiment with another configuration (the first difference is
            named), holds other files, or is in use by another process, all before anything in it is touched; also
            for whatever can't be written in the block, with what was done kept.
    """
    with writing(folder, ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        _check_ours(folder)
        with _locked(folder):
            known = read_json(folder / CONFIG)
            if known is None:
                write_json(folder / CONFIG, config)
            else:
                _check_same(folder, known, config)
                if clear:
                    clear(folder)
            yield folder


def _check_ours(folder: Path) -> None:
    """A folder is an experiment's or empty, and its lock an empty file: anything else is somebody's."""
    lock = folder / LOCK
    if lock.is_symlink() or (lock.exists() and not (lock.is_file() and lock.stat().st_size == 0)):
        others = [LOCK]
    elif (folder / CONFIG).exists():
        others = []
    else:
        others = sorted(p.name for p in folder.iterdir() if p.name not in (LOCK, CONFIG + PARTIAL))
    if others:
        raise BitlabError(f"folder {folder} holds other files ({others[0]}): {ELSEWHERE}")


def _check_same(folder: Path, known: dict, config: dict) -> None:
    config = json.loads(json.dumps(config))
    for key in sorted({*known, *config}, key=lambda key: (key.endswith("digest"), key)):  # what tells a reader first
        if known.get(key) != config.get(key):
            raise BitlabError(
                f"folder {folder} belongs to another experiment: its {key} is {known.get(key)!r}, "
                f"this one's {config.get(key)!r}; {ELSEWHERE}"
            )


def _locked(folder: Path):
    """The folder's lock, held until the end of a `with` block."""
    try:
        return FileLock(folder / LOCK).acquire(blocking=False)
    except Timeout:
        raise BitlabError(f"folder {folder} is in use by another run: wait for it or {ELSEWHERE}") from None
