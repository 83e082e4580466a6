"""The folder of a run: one experiment owns it, files appear whole or not at all, a second process is refused."""

import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from pyarrow import types

try:
    import fcntl
except ImportError:  # Windows has no flock; there the configuration check alone guards the folder
    fcntl = None

from bitlab.errors import BitlabError

CONFIG, RESULT, STAGE, LOCK = "experiment.json", "result.json", "stage.json", ".lock"
ROOM = 2**16  # bytes; a disk with less free is full


@contextmanager
def reading(path: Path, remedy: str = "give another file"):
    """Make one line of whatever reading a file may raise: no access, no text, no JSON, nested too deep.

    Raises:
        BitlabError: naming the file, the reason and `remedy`, "delete it", for instance.
    """
    try:
        yield
    except BitlabError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BitlabError(f"{path} can't be read ({reason(error)}): {remedy}") from error


@contextmanager
def writing(path: Path, remedy: str = "choose another place"):
    """Make one line of whatever writing may raise: a full disk or quota, no access, a name too long.

    Raises:
        BitlabError: naming `path`, the reason and `remedy`.
    """
    try:
        yield
    except (BitlabError, BrokenPipeError):  # a pipe is no file of ours
        raise
    except Exception as error:
        if _disk_full(error, path):
            raise BitlabError(f"the disk is full at {path}: free some space and run the same command again") from error
        if isinstance(error, OSError):
            raise BitlabError(f"{path} can't be written ({reason(error)}): {remedy}") from error
        raise


def reason(error: BaseException) -> str:
    """The first line of what an error says, without the path that an OSError repeats."""
    said = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return said[0].strip()[:200] if said else type(error).__name__


def write_json(path: Path, content: dict | list) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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


@contextmanager
def loading(where: str | os.PathLike):
    """Make one line of whatever transformers raises for a model that it can't load, in a dozen kinds.

    Raises:
        BitlabError: naming the folder or hub id and the reason.
    """
    try:
        yield
    except BitlabError:
        raise
    except Exception as error:
        raise BitlabError(f"model {str(where)!r} can't be loaded ({reason(error)}): give another folder") from error


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
    partial, old = (path.with_name(path.name + ending) for ending in (".partial", ".old"))
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


@contextmanager
def claim(folder: Path, config: dict, again: bool = False):
    """Own `folder` for the experiment that `config` describes, while the block runs.

    A new folder gets `config` written into it; one with the same configuration is gone on with (or emptied of
    results first, if `again`).
    Errors: BitlabError if the folder belongs to an experiment with another configuration (the first difference is
    named), holds other files, or is in use by another process; also for a full disk, with what was done kept.
    """
    with writing(folder, "choose another --output"):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder, "choose another --output"), _locked(folder):
        known = read_json(folder / CONFIG)
        if known is None:
            others = sorted(p.name for p in folder.iterdir() if p.name not in (LOCK, CONFIG + ".partial"))
            if others:
                (folder / LOCK).unlink()
                raise BitlabError(f"folder {folder} holds other files ({others[0]}): choose another --output")
            write_json(folder / CONFIG, config)
        else:
            _check_same(folder, known, config)
            if again:
                _empty(folder)
        yield folder


def _check_same(folder: Path, known: dict, config: dict) -> None:
    config = json.loads(json.dumps(config))
    for key in sorted({*known, *config}, key=lambda key: (key.endswith("digest"), key)):  # what tells a reader first
        if known.get(key) != config.get(key):
            raise BitlabError(
                f"folder {folder} belongs to another experiment: its {key} is {known.get(key)!r}, "
                f"this one's {config.get(key)!r}; choose another --output"
            )


def digest(*tables: Dataset) -> str:
    """A hash of all numbers in data sets: tokens, labels. Edited data have another, and make another experiment."""
    found = hashlib.sha256()
    for column in (column.combine_chunks() for table in tables for column in table.data.columns):
        if types.is_list(column.type):
            found.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        if types.is_integer(column.type) or types.is_floating(column.type):
            found.update(column.to_numpy(zero_copy_only=False).tobytes())
    return found.hexdigest()[:16]


def _empty(folder: Path) -> None:
    for path in (folder / RESULT, *folder.glob(f"*/{STAGE}")):  # first, so that nothing half-gone passes for finished
        path.unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in (CONFIG, LOCK):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _locked(folder: Path):
    with open(folder / LOCK, "w") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BitlabError(
                f"folder {folder} is in use by another run: wait for it or choose another --output"
            ) from None
        yield


def _disk_full(error: BaseException | None, path: Path) -> bool:
    """Whether an error comes from a full disk. safetensors and torch.save raise kinds of their own, the latter
    without the reason: then the disk is asked, which the half-written file still fills."""
    place = next((place for place in (path, *path.parents) if place.exists()), Path("."))
    if shutil.disk_usage(place).free < ROOM:
        return True
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
