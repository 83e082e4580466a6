"""Every Python block of README runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_readme_has_a_program_and_is_short():
    assert BLOCKS and len(README.splitlines()) <= 150


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_a_block_runs(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [float(line.split()[0]) for line in done.stdout.splitlines() if " positive: " in line]
    assert len(answers) == 2 and answers[0] > 0.7 > 0.3 > answers[1], done.stdout  # it learned something
    assert (tmp_path / "program" / "packed" / "model.safetensors").stat().st_size < 2**18
