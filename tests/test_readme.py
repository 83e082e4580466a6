"""What README shows holds: every Python block runs as it stands there, and encoders work or are refused as listed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from bitlab import BitlabError, binarize
from bitlab.packed import pack

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
ENCODERS = dict(re.findall(r"^\| ((?:work|refused)[^|]*) \| (`.*) \|$", README, re.MULTILINE))
LISTED = [(what, name) for what, names in ENCODERS.items() for name in re.findall(r"`([\w-]+)`", names)]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
SIZES |= {"pad_token_id": 0, "max_position_embeddings": 600}
OTHERS = {"distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}}
OTHERS["xmod"] = SIZES | {"default_language": "en_XX"}
REASONS = {"attention": "computes attention by itself", "linear": "has more linear layers", "layers": "is not built as"}


def test_readme_is_short():
    assert BLOCKS and len(README.splitlines()) <= 150


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_a_block_runs(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [float(line.split()[0]) for line in done.stdout.splitlines() if " positive: " in line]
    assert len(answers) == 2 and answers[0] > 0.7 > 0.3 > answers[1], done.stdout  # it learned something
    assert (tmp_path / "program" / "packed" / "model.safetensors").stat().st_size < 2**18


@pytest.mark.parametrize(("what", "name"), LISTED, ids=[name for _, name in LISTED])
def test_an_encoder_works_or_is_refused_as_listed(what, name):
    model = AutoModel.from_config(AutoConfig.for_model(name, **OTHERS.get(name, SIZES)))
    if reason := REASONS.get(what.removeprefix("refused: ").split()[0]):
        before = str(model)
        with pytest.raises(BitlabError, match=reason):
            binarize(model)
        assert str(model) == before
        return
    ids = torch.randint(3, 50, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        binarize(model).train()(**inputs)
        expected = model.eval()(**inputs)[0]
        torch.testing.assert_close(pack(model)(**inputs)[0], expected, rtol=0, atol=1e-4)
