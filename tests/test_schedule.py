"""Schedules: what can be written, what is refused, and how many steps a stage gets."""

import pytest

from bitlab.errors import BitlabError
from bitlab.experiments.schedule import FULL, StageSettings, parse_schedule


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("W32A32 -> W1A4 -> W1A2 -> W1A1", ("W32A32", "W1A4", "W1A2", "W1A1")),
        ("W1A2->W1A1", ("W32A32", "W1A2", "W1A1")),
        ("W1A1", ("W32A32", "W1A1")),
        ("  w32a32 →  w1a8 ", ("W32A32", "W1A8")),
        ("W32A1 -> W1A1", ("W32A32", "W32A1", "W1A1")),
        ("W1A32 -> W1A1", ("W32A32", "W1A32", "W1A1")),
    ],
)
def test_parse(text, path):
    assert parse_schedule(text) == path == parse_schedule(" -> ".join(path)) and path[0] == FULL


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no stage"),
        ("W32A32", "names no stage after W32A32"),
        ("W1A1 -> W1A2", "goes up in precision from W1A1 to W1A2"),
        ("W1A2 -> W32A1", "goes up in precision from W1A2 to W32A1"),
        ("W1A2 -> W1A1 -> W32A32", "goes up in precision from W1A1 to W32A32"),
        ("W1A2 -> W1A2 -> W1A1", "repeats W1A2"),
        ("W1A3 -> W1A1", "W1A3 does not exist"),
        ("W1A2 -> ", "'' is no precision"),
    ],
)
def test_what_is_refused_and_why(text, says):
    with pytest.raises(BitlabError, match=says):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("epochs", "batch", "cap", "examples", "steps"),
    [
        (3, 16, None, 160, 30),
        (3, 16, None, 161, 33),  # a short last batch is a step too
        (0.5, 16, None, 160, 5),
        (0.001, 16, None, 160, 1),
        (3, 16, 7, 160, 7),
        (3, 16, 700, 160, 30),  # the smaller of the two budgets
    ],
)
def test_steps(epochs, batch, cap, examples, steps):
    assert StageSettings(epochs, batch, 1e-3, cap).steps(examples) == steps
