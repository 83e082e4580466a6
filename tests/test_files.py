"""The folder of a run: whole files, one owner, nothing overwritten, a full disk."""

import errno
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset

from bitlab import files
from bitlab.errors import BitlabError

CONFIG = {"task": "rte", "seed": 0, "settings": {"W1A1": {"epochs": 3}}}
HOLDER = """
import sys
from types import SimpleNamespace
from pathlib import Path
from bitlab import files
with files.claim(Path(sys.argv[1]), {"task": "rte"}):
    print("held", flush=True)
    sys.stdin.read()
"""


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    assert files.read_json(path) is None
    files.write_json(path, {"score": 0.5, "name": "é"})
    assert files.read_json(path) == {"score": 0.5, "name": "é"}
    with pytest.raises(TypeError):
        files.write_json(path, {"score": 0.25, "bad": object()})
    assert files.read_json(path) == {"score": 0.5, "name": "é"}
    files.write_json(path, {"score": 0.75})  # what the failed attempt left is in nobody's way
    assert contents(tmp_path).keys() == {"a.json"}


def test_a_damaged_json_file_is_named(tmp_path):
    path = tmp_path / "stage.json"
    path.write_text('{"score": 0.')
    with pytest.raises(BitlabError, match=r"stage\.json can't be read"):
        files.read_json(path)


def test_a_folder_appears_whole(tmp_path):
    goal = tmp_path / "W1A1"
    with files.whole_folder(goal) as partial:
        (partial / "weights").write_text("new")
        assert not goal.exists()
    assert contents(tmp_path) == {"W1A1": None, "W1A1/weights": b"new"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_whose_making_failed_leaves_the_old_one(tmp_path, error):
    goal = tmp_path / "W1A1"
    with files.whole_folder(goal) as partial:
        (partial / "weights").write_text("old")
    with pytest.raises(type(error)), files.whole_folder(goal) as partial:
        (partial / "weights").write_text("half")
        raise error
    assert contents(tmp_path) == {"W1A1": None, "W1A1/weights": b"old"}


def test_remains_of_a_killed_process_do_not_get_into_a_folder(tmp_path):
    remains = tmp_path / "W1A1.partial"
    remains.mkdir()
    (remains / "old").touch()
    with files.whole_folder(tmp_path / "W1A1") as partial:
        (partial / "new").touch()
    assert contents(tmp_path).keys() == {"W1A1", "W1A1/new"}


def test_claim_writes_the_configuration_and_knows_it_again(tmp_path):
    folder = tmp_path / "deep" / "run"
    with files.claim(folder, CONFIG) as owned:
        assert owned == folder and json.loads((folder / files.CONFIG).read_text()) == CONFIG
        (folder / "W1A2").mkdir()
    with files.claim(folder, CONFIG | {"note": None}):  # absent and None are the same
        assert (folder / "W1A2").exists()


def test_json_has_no_tuples_and_that_is_no_difference(tmp_path):
    with files.claim(tmp_path / "run", {"splits": ("a", "b")}):
        pass
    with files.claim(tmp_path / "run", {"splits": ("a", "b")}):
        pass


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (CONFIG | {"seed": 1}, "its seed is 0, this one's 1"),
        (CONFIG | {"task": "sst2"}, "its task is 'rte', this one's 'sst2'"),
        (CONFIG | {"settings": {"W1A1": {"epochs": 4}}}, "its settings"),
        ({k: v for k, v in CONFIG.items() if k != "seed"}, "its seed is 0, this one's None"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_another_experiments_folder_is_refused_and_the_difference_named(tmp_path, other, says, again):
    folder = tmp_path / "run"
    with files.claim(folder, CONFIG):
        files.write_json(folder / files.RESULT, {"score": 1})
    before = contents(folder)
    with pytest.raises(BitlabError, match=says), files.claim(folder, other, again):
        pytest.fail("the block must not run")
    assert contents(folder) == before


def test_a_folder_of_other_files_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(BitlabError, match=r"holds other files \(thesis\.tex\)"), files.claim(tmp_path, CONFIG, True):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == before


def test_again_empties_the_folder_but_for_whose_it_is(tmp_path):
    with files.claim(tmp_path / "run", CONFIG) as folder:
        files.write_json(folder / files.RESULT, {"score": 1})
        (folder / "W1A1").mkdir()
        (folder / "W1A1" / "weights").touch()
    with files.claim(folder, CONFIG, again=True):
        assert {p.name for p in folder.iterdir()} == {files.CONFIG, files.LOCK}


def test_emptying_begins_with_what_says_finished(tmp_path, monkeypatch):
    """Killed in the middle, it leaves nothing that passes for a finished stage or run."""
    with files.claim(tmp_path / "run", CONFIG) as folder:
        for path in (folder / files.RESULT, folder / "W1A1" / files.STAGE):
            files.write_json(path, {"score": 1})
        (folder / "W1A1" / "weights").touch()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), files.claim(folder, CONFIG, again=True):
        pass
    assert (folder / "W1A1" / "weights").exists()
    assert not (folder / files.RESULT).exists() and not (folder / "W1A1" / files.STAGE).exists()


def test_a_digest_is_of_the_numbers():
    rows = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3], "labels": 1}]
    others = [
        [{"input_ids": [1], "labels": 0}, {"input_ids": [2, 3], "labels": 1}],
        [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3], "labels": 0}],
        rows[::-1],
    ]
    found = [files.digest(Dataset.from_list(each)) for each in (rows, list(rows), *others)]
    assert found[0] == found[1] and len(set(found)) == 4


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(BitlabError, match="can't be written"), files.claim(tmp_path / "run", CONFIG):
        pass


@pytest.mark.skipif(files.fcntl is None, reason="no flock here")
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BitlabError, match="in use by another run"), files.claim(tmp_path / "run", {"task": "rte"}):
            pytest.fail("the block must not run")
        holder.kill()  # not even a killed process keeps the folder
    with files.claim(tmp_path / "run", {"task": "rte"}):
        pass


def full_disk_errors():
    """What a full disk looks like: from Python, from safetensors, from torch.save, and wrapped by somebody."""
    from safetensors import SafetensorError

    yield OSError(errno.ENOSPC, "No space left on device")
    yield SafetensorError('Error while serializing: I/O error: Os { code: 28, message: "No space left on device" }')
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    yield wrapped


@pytest.mark.parametrize("error", full_disk_errors(), ids=lambda e: type(e).__name__)
def test_a_full_disk_is_one_line_and_what_was_done_stays(tmp_path, error):
    full = pytest.raises(BitlabError, match=r"the disk is full at .*run the same command again")
    with full, files.claim(tmp_path / "run", CONFIG) as folder:
        with files.whole_folder(folder / "W1A2") as partial:
            (partial / "weights").write_text("done")
        with files.whole_folder(folder / "W1A1") as partial:
            (partial / "weights").write_text("half")
            raise error
    assert (folder / "W1A2" / "weights").read_text() == "done"
    assert not list(folder.glob("W1A1*"))
    with files.claim(folder, CONFIG):
        pass


def test_torch_save_on_a_full_disk(tmp_path, monkeypatch):
    """torch.save hides the reason: the disk itself is asked."""
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    nothing_left = SimpleNamespace(total=10**9, used=10**9, free=0)
    with pytest.raises(RuntimeError), files.claim(tmp_path / "run", CONFIG):
        raise error  # there is room: it was something else
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: nothing_left)
    with pytest.raises(BitlabError, match="the disk is full"), files.claim(tmp_path / "run", CONFIG):
        raise error


def test_other_errors_keep_their_kind(tmp_path):
    with pytest.raises(OSError, match="broken pipe"), files.claim(tmp_path / "run", CONFIG):
        raise OSError(errno.EPIPE, "broken pipe")
    with pytest.raises(BitlabError, match="no such thing"), files.claim(tmp_path / "run", CONFIG):
        raise BitlabError("no such thing")
    with pytest.raises(BitlabError, match="can't be written"), files.claim(tmp_path / "run", CONFIG):
        raise PermissionError(errno.EACCES, "Permission denied")
