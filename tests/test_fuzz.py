"""Hostile files and options: each ends in success, or in exit 2 with one line that names the thing and the remedy.

Everything is drawn from one seed. Most cases go through `cli.main` in this process; those of packed models and some of
each kind through processes of their own, where a crash of compiled code or a hang would show.
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_models import save, write_glue, write_squad

from bitlab import binarize, cli
from bitlab.bench.settings import BenchSettings
from bitlab.data.sample import sample_tokenizer
from bitlab.data.settings import OwnData, Settings
from bitlab.experiments import Experiment, GeneralDistillation
from bitlab.models import load_model
from bitlab.packed import save_packed
from bitlab.terminal.options import kind, options

SEED = 20
SECONDS = 10  # of the processor; a case that takes longer hangs
FEW = 10  # cases of each kind that run in processes of their own

COLORS = ["red", "blue"] * 4
PAIRS = [
    {"sentence1": "a red cup .", "sentence2": f"the cup is {color} .", "label": i % 2, "idx": i}
    for i, color in enumerate(COLORS)
]
CONTEXT, ANSWERS = "the cook saw a red cup .", {"text": ["a red cup"], "answer_start": [13]}
QUESTION = {"id": "q", "question": "what was washed ?", "context": CONTEXT, "answers": ANSWERS}
HOSTILE = [None, [], {}, 5, -1, 1e308, float("nan"), float("inf"), True]
HOSTILE += ["", "x", "\ud800", "~nosuchuser", [[]], {"": 0}]
WORDS = ["", " ", "-1", "0", "1e308", "nan", "inf", "-inf", "9" * 400, "x", "\u0662", "0x10", "1_000", "~nosuchuser/x"]
WORDS += ["n" * 300, "/dev/null", "/dev/null/x", ".", "a\tb", "\x7f", "--", "W1A1 ->", "\ud800"]
ENCODED = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xd8\x00"]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with one good thing of each kind."""
    root = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITLAB_COMPILE", "off")
        model = binarize(load_model("sample", "rte")).train()
        model(**sample_tokenizer()(["the cup is red ."], return_tensors="pt"))  # which sets its scales
        model.eval()
        spans = load_model("sample", "squad")
        for name, each in (("latent", model), ("float", load_model("sample", "rte")), ("spans", spans)):
            save(each, root / name)
        save_packed(model, root / "packed")
        sample_tokenizer().save_pretrained(root / "packed")
        write_glue(root / "glue", "rte", {"train": PAIRS, "validation": PAIRS})
        (root / "hub" / "RTE").mkdir(parents=True)
        for split in ("train", "validation"):
            Dataset.from_list(PAIRS).to_parquet(root / "hub" / "RTE" / f"{split}-00000-of-00001.parquet")
        write_squad(root / "squad", {"train": [QUESTION], "validation": [QUESTION]})
        (root / "own").mkdir()
        (root / "own" / "reviews.jsonl").write_text(
            "".join(json.dumps({"text": "a red cup .", "label": ["bad", "good"][i % 2]}) + "\n" for i in range(12))
        )
        assert cli.main([*RUN.split(), "--data", str(root / "glue"), "--output", str(root / "run")]) == 0
    return root


RUN = "glue rte --model sample --max-steps 1 --batch-size 4 --schedule W1A1 --teacher-learning-rate 1e-3 --json"


# ---------------------------------------------------------------------------------------------- corruptions


def corrupted(chance, path):
    """One file, changed at random: its bytes, or a value in its JSON, or a field of its rows."""
    content = path.read_bytes()
    ways = [_bytes]
    if path.suffix == ".json":
        ways += [_json] * 3
    if path.suffix in (".tsv", ".jsonl"):
        ways += [_rows] * 2
    path.write_bytes(chance.choice(ways)(chance, content))


def _bytes(chance, content):
    place = chance.randrange(len(content) + 1)
    return chance.choice(
        [
            lambda: content[:place],
            lambda: content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :],
            lambda: content[:place] + chance.choice(ENCODED) + content[place:],
            lambda: chance.choice(ENCODED) + content,
            lambda: b"",
            lambda: b"[" * 100_000,
            lambda: content + content,
            lambda: content.decode("latin1").encode("utf-16"),
        ]
    )()


def _json(chance, content):
    document = json.loads(content)
    places = list(_places(document))
    if not places or chance.random() < 0.1:
        return json.dumps(chance.choice(HOSTILE)).encode()
    holder, key = chance.choice(places)
    if chance.random() < 0.3:
        del holder[key]
    else:
        holder[key] = chance.choice([*HOSTILE, holder[chance.choice(list(holder))] if isinstance(holder, dict) else 0])
    return json.dumps(document).encode()


def _places(value):
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _rows(chance, content):
    lines = content.split(b"\n")
    number = chance.randrange(len(lines))
    fields = lines[number].split(b"\t")
    fields[chance.randrange(len(fields))] = str(chance.choice(HOSTILE)).encode("utf-8", "surrogatepass")
    lines[number] = chance.choice([b"\t".join(fields), b"", lines[number] * 2, b'{"text": 5}'])
    return b"\n".join(lines)


# ---------------------------------------------------------------------------------------------------- cases


OWN = ("--text", "text", "--label", "label", "--model", "./nowhere")


def data_cases(chance, root):
    yield "glue/RTE/dev.tsv", ["evaluate", "float", "rte", "--data", "glue"]
    yield "glue/RTE/train.tsv", ["glue", "rte", "--data", "glue", "--model", "./nowhere"]
    yield "hub/RTE/validation-00000-of-00001.parquet", ["evaluate", "float", "rte", "--data", "hub/RTE"]
    yield "squad/dev-v1.1.json", ["evaluate", "spans", "squad", "--data", "squad"]
    yield (
        "own/reviews.jsonl",
        ["train", "own/reviews.jsonl", "--text", "text", "--label", "label", "--model", "./nowhere"],
    )


def model_cases(chance, root):
    name = chance.choice(["latent", "float", "packed", "spans"])
    file = chance.choice(sorted(p.name for p in (root / name).iterdir()))
    file = chance.choice([file, "config.json", "config.json", "model.safetensors"])
    context = ["--context", CONTEXT] if name == "spans" else []
    yield f"{name}/{file}", ["predict", name, "a red cup .", *context]
    if name == "latent":
        yield f"latent/{file}", ["pack", "latent", "out"]


def run_cases(chance, root):
    command = [*RUN.split(), "--data", "glue", "--output", "run"]
    yield f"run/{chance.choice(['result.json', 'experiment.json'])}", command
    yield (
        f"run/{chance.choice(['result.json', 'W1A1/log.json', 'W1A1/config.json'])}",
        ["results", "run", "--folder", "."],
    )
    yield f"run/{chance.choice(['W32A32', 'W1A1'])}/stage.json", [*command, "without result"]


SETTINGS = {
    ("glue", "rte", "--data", "glue", "--model", "./nowhere"): Experiment,
    ("squad", "--data", "squad", "--model", "./nowhere"): Experiment,
    ("distil", "glue/RTE/dev.tsv", "--output", "mine", "--model", "./nowhere"): GeneralDistillation,
    ("bench", "train", "--tasks", "glue", "--growth", "--batch", "1", "--batch", "1"): BenchSettings,
    ("augment", "rte", "--data", "glue", "--vectors", "./nowhere"): Settings,
    ("train", "own/reviews.jsonl", *OWN): OwnData,
}
PATHS = [
    *(f"{RUN} {path}" for path in ("--data glue --model", "--data", "--data glue --teacher", "--start")),
    *("predict {} x", "pack", "pack latent", "evaluate float rte --data", "evaluate", "results", "results --folder"),
    *("distil", "augment rte --data glue --vectors", "train {} --text text --label label", "notebooks mine/notes.txt/"),
    *("squad --data", "distil glue/RTE/dev.tsv --model sample --output", "results run --folder"),
]


def option_cases(chance, root):
    command, settings = chance.choice(list(SETTINGS.items()))
    left = ("task", "texts", "model")
    each = chance.choice([e for e in options(settings) if e.name not in left and kind(e) is not bool])
    yield None, [*command, f"--{each.name.replace('_', '-')}={chance.choice(WORDS)}"]
    path, word = chance.choice(PATHS), chance.choice(WORDS)
    yield None, [w.replace("{}", word) for w in path.split()] + ([] if "{}" in path else [word])


FAMILIES = {
    "data": (data_cases, 14),
    "models": (model_cases, 60),
    "runs": (run_cases, 25),
    "options": (option_cases, 80),
}


def cases(chance, root):
    """(a folder with one thing corrupted and a foreign file in it, the file, the command), families taking turns."""
    for number in range(max(rounds for _, rounds in FAMILIES.values())):
        for family, make in [(name, make) for name, (make, rounds) in FAMILIES.items() if number < rounds]:
            for file, arguments in make(chance, root):
                place = root.parent / f"{family}{number}"
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(root, place)
                (place / "mine").mkdir()
                (place / "mine" / "notes.txt").write_text("years of work")
                if arguments[-1] == "without result":
                    arguments.pop()
                    (place / "run" / "result.json").unlink()
                if file:
                    corrupted(chance, place / file)
                yield place, file, arguments
                shutil.rmtree(place)


# ---------------------------------------------------------------------------------------------------- judging


def judge(code, out, err, what):
    assert "Traceback" not in out + err, f"{what}: {err}"
    if code == 2:
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("bitlab: ") and len(lines[0]) > 20, f"{what}: {err!r}"
    else:
        assert code == 0, f"{what}: exit {code}, {err!r}"


def here(arguments):
    """(exit code, standard output, standard error) of the command line's main function."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def elsewhere(arguments, folder):
    """In a process of its own, which inherits this one's imports."""
    os.chdir(folder)
    torch.set_num_threads(1)
    with open("out", "w") as sys.stdout, open("err", "w") as sys.stderr:
        code = cli.main(arguments)
    os._exit(code)


@pytest.fixture
def quiet_folder(monkeypatch):
    monkeypatch.setenv("BITLAB_COMPILE", "off")
    monkeypatch.delenv("BITLAB_DATA", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_hostile_files_and_options(good, quiet_folder, monkeypatch, capsys):
    chance, started = random.Random(SEED), time.monotonic()
    for place, file, arguments in cases(chance, good):
        monkeypatch.chdir(place)
        before = time.process_time()
        with capsys.disabled():
            result = here(arguments)
        what = f"{place.name} {file} {' '.join(arguments)!r:.300}"
        judge(*result, what)
        assert time.process_time() - before < SECONDS, what
        assert (place / "mine" / "notes.txt").read_text() == "years of work", what
        monkeypatch.chdir(good)
        if time.monotonic() - started > 20:
            break  # a slow machine sees fewer of each kind


def test_packed_models_in_processes_of_their_own(good, quiet_folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bitlab.inference", "bitlab.experiments.running"])
    chance = random.Random(SEED + 1)
    for number in range(FEW):
        place = Path(shutil.copytree(good, good.parent / f"own{number}"))
        corrupted(chance, place / "packed" / chance.choice(["config.json", "model.safetensors"]))
        process = context.Process(target=elsewhere, args=(["predict", "packed", "a red cup ."], place))
        process.start()
        process.join(30 * SECONDS)  # of the clock, on however busy a machine; the first waits for the imports
        alive = process.is_alive()
        process.kill()
        assert not alive, f"packed {number} hangs"
        judge(process.exitcode, (place / "out").read_text(), (place / "err").read_text(), f"packed {number}")
