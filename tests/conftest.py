"""No test needs a network or a screen, and none depends on what another left in the random generators."""

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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
