"""What README shows holds: every Python block runs as it stands there, and encoders work or are refused as listed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("encoders.md")
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_readme_is_short():
    assert BLOCKS and len(README.splitlines()) <= 150


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_a_block_runs(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [float(line.split()[0]) for line in done.stdout.splitlines() if " positive: " in line]
    assert len(answers) == 2 and answers[0] > 0.7 > 0.3 > answers[1], done.stdout  # it learned something
    assert (tmp_path / "program" / "packed" / "model.safetensors").stat().st_size < 2**18


def test_encoders_are_listed_as_the_table_says():
    told = dict(re.findall(r"^\| ([\w-]+) \| (yes|no) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE))
    for start, answer in (("work", "yes"), ("refused", "no")):
        names = re.findall(r"`([\w-]+)`", re.search(rf"^\| {start}.*$", README, re.MULTILINE)[0])
        assert names and {told[name] for name in names} == {answer}
        assert answer == "no" or set(names) == {name for name in told if told[name] == "yes"}
