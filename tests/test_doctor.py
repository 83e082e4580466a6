"""`bitlab doctor`: a line a finding, none of them twice, advice where something is absent."""

import pytest
import torch
from tiny_models import refused

from bitlab import BitlabError, cli, compiled
from bitlab.cli import doctor


def lines(capsys):
    assert cli.main(["doctor"]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_finding_has_a_line_and_what_is_absent_advice(capsys):
    found = lines(capsys)
    assert f"torch {torch.__version__}" in found[0]
    for line in found[2:]:
        assert line.split()[1] in ("ok", "--") and (line.split()[1] == "--") == (" -> " in line)
    told = [part for line in found[2:] for part in line[10:].split(" -> ")]
    assert len(set(told)) == len(told)


def test_what_is_absent(capsys, monkeypatch, tmp_path):
    def absent():
        raise BitlabError("the model 'minilm' is not installed: pip install something")

    monkeypatch.setenv("BITLAB_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("BITLAB_COMPILE", "auto")
    monkeypatch.setattr(compiled, "find_compiler", lambda *names: None)
    monkeypatch.setattr(doctor, "minilm_folder", absent)
    monkeypatch.setattr(doctor, "hub_reachable", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = {tuple(line.split()[:2]): line for line in lines(capsys)}
    for what, says in {
        "gpu": "none",
        "mps": "does not use it",
        "compiled": "install g++",
        "model": "not installed -> pip install something",
        "data": "nowhere does not exist -> set BITLAB_DATA",
        "hub": "huggingface.co",
    }.items():
        assert says in found[what, "--"]


def test_what_is_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BITLAB_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "hub_reachable", lambda: True)
    found = lines(capsys)
    assert any(line.startswith("data      ok") and str(tmp_path) in line for line in found)
    assert any(line.startswith("hub       ok") for line in found)


@pytest.mark.parametrize(("seconds", "mark"), [(0.2, "ok"), (1.8, "--")])
def test_bf16_is_advised_where_its_products_are_faster(capsys, monkeypatch, seconds, mark):
    monkeypatch.setattr(doctor, "measure", lambda calls, rounds: {kind: [seconds**i] for i, kind in enumerate(calls)})
    (line,) = (line for line in lines(capsys) if line.startswith("bf16"))
    assert line.split()[1] == mark and f"{seconds:.2f} of float32" in line


def test_a_word_that_is_no_mode(capsys, monkeypatch, here):
    monkeypatch.setenv("BITLAB_COMPILE", "nonsense")
    assert "BITLAB_COMPILE is 'nonsense'" in refused(capsys, "doctor")
