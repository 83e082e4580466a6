"""No test needs a network or a screen, and none depends on what another left; whatever is refused is one line."""

import getpass
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MPLBACKEND"] = "agg"
if (capability := os.environ.get("ATEN_CPU_CAPABILITY")) in ("default", "avx2"):  # see `make test-processors`
    # oneDNN must hear it too, or torch fails in bf16; and torch keeps compiled formulas whatever processor they are for
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    kept = f"torchinductor_{getpass.getuser()}_{capability}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), kept))

import pytest
import torch
from hypothesis import settings
from tiny_models import cheaply

from bitlab.errors import BitlabError

settings.register_profile("the same examples every time", deadline=None, derandomize=True, database=None)
settings.load_profile("the same examples every time")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _errors_are_one_line(monkeypatch):
    """Every BitlabError of every test, whatever else that test asks of it."""
    said = []
    monkeypatch.setattr(BitlabError, "__init__", lambda self, *args: said.append(str(self)))
    yield
    assert not [message for message in said if "\n" in message]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and no data that the environment names."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("BITLAB_DATA", raising=False)
    return folder


@pytest.fixture(scope="module")
def cheap():
    with cheaply():
        yield
