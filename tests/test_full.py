"""`BITLAB_PRESET=full` is a promise: every notebook reaches its last cell on files of the original layouts.

The files are cut to few rows, a tiny model stands in the place of the named one, and trainings end after some steps.
So nothing is learned and no claim about scores holds: what would stop a run of hours for that stops here.
"""

from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib import pyplot as plt
from tiny_models import write_glue, write_squad
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from bitlab import models
from bitlab.course.lab import Lab
from bitlab.data.sample import sample_glue, sample_squad, vocabulary
from bitlab.data.tasks import TASKS
from bitlab.experiments.prepared import Prepared
from bitlab.experiments.schedule import StageSettings

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ROWS = {"train": 400, "dev": 260}
STEPS = 4  # of a training, at most


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `data`, the original files of every task, and `model`, an encoder."""
    folder = tmp_path_factory.mktemp("full")
    for name in TASKS:
        splits = {split: map(as_written, rows) for split, rows in sample_glue(name, **ROWS).items()}
        write_glue(folder / "data", name, splits)
    write_squad(folder / "data" / "squad", sample_squad(**ROWS))
    write_model(folder / "model")
    return folder


def as_written(row: dict) -> dict:
    """A sample row as people write sentences."""
    return {name: value.capitalize() + "." if isinstance(value, str) else value for name, value in row.items()}


def write_model(folder: Path) -> None:
    """An encoder as real ones are: word pieces, dropout, more layers than the sample model and other heads."""
    letters = [mark + chr(code) for code in range(ord("a"), ord("z") + 1) for mark in ("", "##")]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*vocabulary(), *letters, ",", "!", "'"])))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    BertForMaskedLM(BertConfig(vocab_size=len(BertTokenizer.from_pretrained(folder)), **sizes)).save_pretrained(folder)


def shorter(value):
    """What the full preset picks, with its large numbers three hundred times smaller."""
    if isinstance(value, tuple):
        return tuple(map(shorter, value))
    return max(1, value // 300) if isinstance(value, int) and value > 20 else value


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_reaches_its_last_cell(path, place, tmp_path, monkeypatch):
    monkeypatch.setenv("BITLAB_PRESET", "full")
    monkeypatch.setenv("BITLAB_HEADLESS", "1")
    monkeypatch.delenv("PYTEST_VERSION", raising=False)  # controls are tried in the quick preset
    monkeypatch.setenv("BITLAB_DATA", str(place / "data"))
    monkeypatch.setattr(models, "minilm_folder", lambda: place / "model")
    monkeypatch.setattr(Lab, "pick", lambda self, quick, full: shorter(full))
    steps = StageSettings.steps
    monkeypatch.setattr(StageSettings, "steps", lambda self, examples: min(STEPS, steps(self, examples)))
    monkeypatch.setattr(Prepared, "trivial_score", lambda self: -1.0)  # or a teacher that learned nothing is refused
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names = {"__name__": "__main__"}
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{path.stem}, cell {number}", "exec"), names)
