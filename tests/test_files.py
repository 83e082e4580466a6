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
from bitlab.experiments.folder import LOG, RESULT, STAGE, STAGE_HOLDS, clear, digest, record_in, run_in

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


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    assert files.read_json(path) is None
    files.write_json(path, {"score": 0.5, "name": "é"})
    with pytest.raises(TypeError):
        files.write_json(path, {"score": 0.25, "bad": object()})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(files.os, "fsync", full)
        files.write_json(path, {"score": 0.25})
    assert files.read_json(path) == {"score": 0.5, "name": "é"} and contents(tmp_path).keys() == {"a.json"}
    path.write_text('{"score": 0.')
    with pytest.raises(BitlabError, match=r"a\.json can't be read"):
        files.read_json(path)


def test_a_folder_appears_whole_and_without_what_a_killed_process_left(tmp_path):
    goal, remains = tmp_path / "W1A1", tmp_path / f"W1A1{files.PARTIAL}"
    remains.mkdir()
    (remains / "old").touch()
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


def test_claim_writes_the_configuration_and_knows_it_again(tmp_path):
    """JSON has no tuples, and what is absent is None: these are no differences."""
    folder, config = tmp_path / "deep" / "run", CONFIG | {"splits": ("a", "b")}
    with files.claim(folder, config) as owned:
        assert owned == folder and files.read_json(folder / files.CONFIG) == CONFIG | {"splits": ["a", "b"]}
        (folder / "W1A2").mkdir()
    with files.claim(folder, config | {"note": None}):
        assert (folder / "W1A2").exists()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (CONFIG | {"seed": 1}, "its seed is 0, this one's 1"),
        (CONFIG | {"task": "sst2"}, "its task is 'rte', this one's 'sst2'"),
        (CONFIG | {"settings": {"W1A1": {"epochs": 4}}}, "its settings"),
        ({k: v for k, v in CONFIG.items() if k != "seed"}, "its seed is 0, this one's None"),
    ],
)
def test_another_experiments_folder_is_refused_and_the_difference_named(tmp_path, other, says):
    folder = tmp_path / "run"
    with files.claim(folder, CONFIG):
        files.write_json(folder / RESULT, {"score": 1})
    before = contents(folder)
    with pytest.raises(BitlabError, match=says), files.claim(folder, other, pytest.fail):
        pytest.fail("the block must not run")
    assert contents(folder) == before


def test_a_folder_of_other_files_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with (
        pytest.raises(BitlabError, match=r"holds other files \(thesis\.tex\)"),
        files.claim(tmp_path, CONFIG, pytest.fail),
    ):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "link", "link to an empty file", "folder"])
@pytest.mark.parametrize("ours", [False, True])
def test_a_foreign_lock_is_left_alone(tmp_path, kind, ours):
    folder = tmp_path / "run"
    if ours:
        with files.claim(folder, CONFIG):
            pass
        (folder / files.LOCK).unlink()
    folder.mkdir(exist_ok=True)
    (tmp_path / "target").write_text("precious")
    (tmp_path / "empty").touch()
    {
        "file": lambda lock: lock.write_text("12345"),
        "link": lambda lock: lock.symlink_to(tmp_path / "target"),
        "link to an empty file": lambda lock: lock.symlink_to(tmp_path / "empty"),
        "folder": lambda lock: lock.mkdir(),
    }[kind](folder / files.LOCK)
    before = contents(tmp_path)
    with pytest.raises(BitlabError, match=r"holds other files \(\.lock\)"), files.claim(folder, CONFIG):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == before


STAGES = ["W32A32", "W1A1"]


def finished(folder):
    """What a run leaves, and beside it what is not its own."""
    for path in (folder / RESULT, *(folder / stage / name for stage in STAGES for name in (STAGE, LOG))):
        files.write_json(path, {"score": 1})
    for place in ("W1A1.training/checkpoint-1", "W1A1/predictions/dev", f"W1A1{files.OLD}", "mine"):
        (folder / place).mkdir(parents=True)
    (folder / "W1A1" / "predictions" / "dev" / "RTE.tsv").write_text("x")
    for path in (folder / "notes.txt", folder / "mine" / "W1A1", folder / "W1A1" / "model.safetensors"):
        path.write_text("x")


def test_again_deletes_what_the_run_made_and_nothing_else(tmp_path):
    with files.claim(tmp_path / "run", CONFIG) as folder:
        finished(folder)
    with files.claim(folder, CONFIG, lambda folder: clear(folder, STAGES, ["predictions/dev/RTE.tsv"])):
        assert {p.name for p in folder.iterdir()} == {files.CONFIG, files.LOCK, "mine", "notes.txt"}
        assert (folder / "mine" / "W1A1").read_text() == "x"


@pytest.mark.parametrize(
    "place", ["thesis.tex", "predictions/mine.tsv", "predictions/dev/mine.tsv", "runs/mine/RTE.tsv"]
)
def test_neither_again_nor_a_new_stage_deletes_what_was_put_into_its_folder(tmp_path, place):
    files.write_json(tmp_path / files.CONFIG, CONFIG)
    finished(tmp_path)
    files.write_text(tmp_path / "W1A1" / place, "years of work")
    made = ["predictions/dev/RTE.tsv"]
    before = contents(tmp_path)
    with pytest.raises(BitlabError, match=r"(tex|tsv) is not the run's: move it elsewhere"):
        clear(tmp_path, STAGES, made)
    (tmp_path / "W1A1" / STAGE).unlink()  # its owner wants it made anew
    with pytest.raises(BitlabError, match=r"(tex|tsv) is not the run's: move it elsewhere"):
        run_in(tmp_path, CONFIG, STAGES, lambda: None, pytest.fail, False, print, made)
    files.write_json(tmp_path / "W1A1" / STAGE, {"score": 1})
    (tmp_path / files.LOCK).unlink(missing_ok=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("deletions", range(5))
def test_clearing_killed_at_any_moment_leaves_the_beginning_of_the_run(tmp_path, monkeypatch, deletions):
    """What passes for finished is gone first, from the run's end to its beginning."""
    finished(tmp_path)
    done = iter(range(deletions))

    def counted(original):
        def delete(*args, **options):
            if next(done, None) is None:
                raise KeyboardInterrupt
            return original(*args, **options)

        return delete

    monkeypatch.setattr(type(tmp_path), "unlink", counted(type(tmp_path).unlink))
    monkeypatch.setattr("shutil.rmtree", counted(files.shutil.rmtree))
    with pytest.raises(KeyboardInterrupt):
        clear(tmp_path, STAGES, ["predictions/dev/RTE.tsv"])
    records = [tmp_path / "W32A32" / STAGE, tmp_path / "W1A1" / STAGE, tmp_path / RESULT]
    left = [record.exists() for record in records]
    assert left == sorted(left, reverse=True) and sum(left) == max(0, 3 - deletions)


GOOD = {"precision": "W1A1", "score": 0.5, "metrics": {"accuracy": 0.5}, "steps": 3, "seconds": 1.5}


@pytest.mark.parametrize(
    "content",
    [[], 5, {}, *({k: v for k, v in GOOD.items() if k != name} for name in GOOD), GOOD | {"score": None}]
    + [
        GOOD | change
        for change in ({"steps": 1.5}, {"seconds": "1"}, {"metrics": {"f1": None}}, {"score": float("nan")})
    ],
    ids=str,
)
def test_records_that_are_none(tmp_path, content):
    path = tmp_path / STAGE
    assert record_in(path, STAGE_HOLDS) is None
    path.write_text(json.dumps(content))
    with pytest.raises(BitlabError, match=r"stage\.json can't be read .*: delete it, and"):
        record_in(path, STAGE_HOLDS)
    path.write_text(json.dumps(GOOD))
    assert record_in(path, STAGE_HOLDS) == GOOD


def test_a_digest_is_of_the_numbers():
    rows = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3], "labels": 1}]
    others = [
        [{"input_ids": [1], "labels": 0}, {"input_ids": [2, 3], "labels": 1}],
        [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3], "labels": 0}],
        rows[::-1],
    ]
    found = [digest(Dataset.from_list(each)) for each in (rows, list(rows), *others)]
    assert found[0] == found[1] and len(set(found)) == 4


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(BitlabError, match="can't be written"), files.claim(tmp_path / "run", CONFIG):
        pass


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BitlabError, match="in use by another run"), files.claim(tmp_path / "run", {"task": "rte"}):
            pytest.fail("the block must not run")
        holder.kill()  # not even a killed process keeps the folder
    with files.claim(tmp_path / "run", {"task": "rte"}):
        pass


def write_errors():
    """What keeps from writing: as Python tells it, safetensors, torch.save, and wrapped by somebody."""
    from safetensors import SafetensorError

    full, no_space = "the disk is full at .*run the same command again", "No space left on device"
    yield OSError(errno.ENOSPC, no_space), full
    yield OSError(errno.EDQUOT, "Disk quota exceeded"), full
    yield SafetensorError('Error while serializing: I/O error: Os { code: 28, message: "No space left" }'), full
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = OSError(errno.ENOSPC, no_space)
    yield wrapped, full
    yield OSError(errno.EROFS, "Read-only file system"), r"run can't be written \(Read-only file system\): choose"
    yield SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), r"\(File too large\)"
    yield OSError(errno.ENAMETOOLONG, "File name too long", "long"), r"^long can't be written \(File name too long\)"
    yield RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "could not write all"


@pytest.mark.parametrize(("error", "says"), write_errors(), ids=lambda e: type(e).__name__)
def test_what_cannot_be_written_is_one_line_and_what_was_done_stays(tmp_path, error, says):
    with pytest.raises(BitlabError, match=says), files.claim(tmp_path / "run", CONFIG) as folder:
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
    nothing_left = SimpleNamespace(total=10**9, used=10**9, free=0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: nothing_left)
    with pytest.raises(BitlabError, match="the disk is full"), files.claim(tmp_path / "run", CONFIG):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def test_other_errors_keep_their_kind(tmp_path):
    for error in (
        BrokenPipeError(errno.EPIPE, "broken pipe"),
        BitlabError("no such thing"),
        KeyError("a fault of ours"),
    ):
        with pytest.raises(type(error)), files.claim(tmp_path / "run", CONFIG):
            raise error


def test_a_folder_whose_replacement_was_killed_between_two_renames_comes_back(tmp_path):
    files.write_text(tmp_path / f"W1A1{files.OLD}" / "weights", "old")
    with pytest.raises(KeyboardInterrupt), files.whole_folder(tmp_path / "W1A1"):
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"W1A1": None, "W1A1/weights": b"old"}


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(files.expanded("~/runs")) == "/home/me/runs" and str(files.expanded("runs")) == "runs"
    with pytest.raises(BitlabError, match="the home folder in '~nosuchuser/x' is nobody's"):
        files.expanded("~nosuchuser/x")
