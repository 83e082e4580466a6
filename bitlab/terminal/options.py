"""A setting is stated once: a dataclass's field says what it is and what it may be.

    @dataclass(frozen=True)
    class Budget:
        epochs: float = option(3.0, "passes over the data", above=0, at_most=1e6)

From such fields come the options of the command line (`add_options`), the checks (`check`) and the words of results.
Nothing here imports torch, so that `--help` need not wait for it.
"""

import argparse
import os
from collections.abc import Collection
from dataclasses import MISSING, Field, field, fields
from typing import get_args, get_origin

from bitlab.errors import BitlabError, check_choice, check_number, either
from bitlab.files import expanded

COUNT = {"at_least": 1, "at_most": 10**9}
AMOUNT = {"above": 0, "at_most": 10**6}
BATCH = {"at_least": 1, "at_most": 10**5}
RATE = {"above": 0}
WEIGHT = {"at_least": 0}
SEED = {"at_least": 0, "at_most": 2**31 - 1}


def option(
    default=MISSING,
    help: str = "",
    *,
    choices: Collection[str] | None = None,
    path: bool = False,
    default_words: str | None = None,
    metavar: str | None = None,
    only: str | None = None,
    required: bool = False,
    told: bool = False,
    **bounds: float,
):
    """A dataclass field that is an option too.

    Args:
        default: None where something else decides when nothing is given; MISSING where it has to be given.
        help: what it is, with its unit, as `--help` says it.
        choices: the values that there are.
        path: whether it may be a path, whose "~" is the home folder.
        default_words: what `--help` calls the default, where that is not the value itself.
        metavar: what `--help` calls the value.
        required: whether the command line insists on it, where it has no default.
        only: the command that has it, where not all have.
        told: whether the table of results tells it by other means than by marking a row with it.
        bounds: as of `bitlab.errors.check_number`.
    """
    known = {"help": help, "choices": choices, "path": path, "default_words": default_words, "metavar": metavar}
    return field(default=default, metadata=known | {"only": only, "required": required, "told": told, "bounds": bounds})


def kind(each: Field) -> type:
    """The type of a field's values, None aside: int, float, str, bool, or tuple for several numbers."""
    known = [t for t in get_args(each.type) if t is not type(None)] if is_optional(each) else [each.type]
    return get_origin(known[0]) or known[0]


def is_optional(each: Field) -> bool:
    """Whether a field may be None."""
    return type(None) in get_args(each.type)


def check(settings) -> None:
    """Hold every field of a dataclass instance to its bounds and choices, and expand its paths.

    Raises:
        BitlabError: "epochs is -1: give a number above 0".
    """
    for each in options(type(settings)):
        value, known = getattr(settings, each.name), each.metadata
        if value is None and is_optional(each):
            continue
        if kind(each) in (int, float, tuple) and known["bounds"]:
            for number in value if kind(each) is tuple else (value,):
                check_number(each.name, number, whole=kind(each) is not float, **known["bounds"])
        if known["choices"]:
            check_choice(each.name, value, known["choices"])
        if known["path"]:
            text = os.fspath(value)
            object.__setattr__(settings, each.name, str(expanded(text)) if text.startswith("~") else text)


def options(settings: type) -> list[Field]:
    """The fields that were made by `option`."""
    return [each for each in fields(settings) if "bounds" in each.metadata]


def add_options(
    parser: argparse.ArgumentParser,
    settings: type,
    command: str | None = None,
    also: Collection[str] = (),
    leave: Collection[str] = (),
) -> None:
    """An option for every field that has a default; one that isn't given leaves the field's default alone.

    Args:
        command: the fields that are another command's `only` are left out.
        also: names of fields without a default that have an option all the same.
        leave: names of fields that have none.
    """
    for each in options(settings):
        known = each.metadata
        absent = each.default is MISSING and each.name not in also
        if absent or each.name in leave or known["only"] not in (None, command):
            continue
        words = [known["help"] + (f": {either(known['choices'])}" if known["choices"] else "")]
        if known["default_words"] or not (each.default is False or each.default in (None, MISSING, ())):
            words.append(f"(default: {known['default_words'] or each.default})")
        parser.add_argument(
            "--" + each.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=" ".join(words).replace("%", "%%"),
            **_how(each),
        )


def _how(each: Field) -> dict:
    if kind(each) is bool:
        return {"action": "store_true"}
    if kind(each) is tuple:
        return {"action": "append", "type": get_args(each.type)[0]}
    required = {"required": True} if each.default is MISSING and each.metadata["required"] else {}
    return required | {"type": kind(each), "metavar": each.metadata["metavar"]}


def given(settings: type, namespace: argparse.Namespace) -> dict:
    """What the command line gave of a dataclass's fields.

    Raises:
        BitlabError: for an option without a value, `--data=--`, which argparse lets through.
    """
    found = {each.name: getattr(namespace, each.name) for each in fields(settings) if hasattr(namespace, each.name)}
    for name, value in found.items():
        if value == []:
            raise BitlabError(f"--{name.replace('_', '-')} has no value: give one")
    return found


def words(settings, usual) -> list[str]:
    """The command line's words for every option in which a dataclass instance differs from `usual`, another one.

    `given` reads them back: ["--epochs", "2", "--bf16"].
    """
    found = []
    for each in options(type(settings)):
        value = getattr(settings, each.name)
        if each.default is not MISSING and value is not None and value != getattr(usual, each.name):
            number = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
            found += ["--" + each.name.replace("_", "-"), *([] if kind(each) is bool else [number])]
    return found
