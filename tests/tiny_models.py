"""Encoders small enough for a test, of every architecture, head and method; and what tests of commands and runs share.

Where a test holds two ways of computing a binary model to each other, it does so in float64 (`model.double()`): in
float32 the last bit of a sum, which is another one on another processor, may lie at a threshold and decide a code.
"""

import gc
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
)

from bitlab import BitConfig, BitlabError, binarize, cli
from bitlab.compiled import torch_threads
from bitlab.data.glue import file_names, layout
from bitlab.data.sample import sample_tokenizer
from bitlab.data.tasks import get_task
from bitlab.layers import Binarizer, ElasticBinarizer

REAL = Path(os.environ.get("BITLAB_DATA") or Path(__file__).parents[2] / "shared" / "data")
# The kernel's exp and sums are those of torch's AVX vectors, to the last bit; other builds of torch have others.
SAME_ORDER = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
WORDS = 60
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT_SIZES = {
    "vocab_size": WORDS,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "qa_dropout": 0.0,
}
CONFIGS = {
    "bert": lambda **options: BertConfig(**SIZES | options),
    "roberta": lambda **options: RobertaConfig(**SIZES | options),
    # a narrower embedding, as in the released small ELECTRA: it adds one linear layer, embeddings_project
    "electra": lambda **options: ElectraConfig(**SIZES | options, embedding_size=8),
    "distilbert": lambda **options: DistilBertConfig(**DISTILBERT_SIZES | options),
}
OTHERS = {
    "mpnet": lambda **options: MPNetConfig(**SIZES | options),
    # one layer that is run twice, behind an embedding that is narrower
    "albert": lambda **options: AlbertConfig(**SIZES | options, embedding_size=8, classifier_dropout_prob=0.0),
}
HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "span": AutoModelForQuestionAnswering,
    "token": AutoModelForTokenClassification,
    "bare": AutoModel,
}
RIVALS = ["bibert W1A1", "binarybert W2A8", "binarybert W2A4", "binarybert W1A8", "binarybert W1A1"]
METHODS = ["bit W1A1", "bit W1A2", *RIVALS]


def tiny(architecture="bert", head="sequence", seed=0, **options):
    """A float model in eval mode, the same every time; LayerNorms and biases are not left at 1 and 0."""
    torch.manual_seed(seed)
    model = HEADS[head].from_config((CONFIGS | OTHERS)[architecture](**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "embeddings" in name or parameter.dim() == 2 else 0.1
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def batch(size=3, length=9, seed=0, pad=0):
    """Random word ids of `size` sentences; the last `pad` places of each are padding."""
    ids = torch.randint(3, WORDS, (size, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(size, length, dtype=torch.long)
    if pad:
        ids[:, -pad:], mask[:, -pad:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model, **inputs):
    """The model's outputs in eval mode as a tuple of tensors."""
    model.eval()
    with torch.no_grad():
        return tuple(value for value in model(**inputs).values() if isinstance(value, torch.Tensor))


def binarizers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Binarizer)}


def warm_up(model, **inputs):
    """Initialise every alpha from one batch, then move alphas and betas off their first values."""
    model.train()
    with torch.no_grad():
        model(**(inputs or batch()))
        generator = torch.Generator().manual_seed(7)
        for module in binarizers(model).values():
            if isinstance(module, ElasticBinarizer):  # BiBERT's have none
                module.alpha *= 1.1
            if getattr(module, "beta", None) is not None:
                module.beta += 0.05 * torch.randn(module.beta.shape, generator=generator)
    return model.eval()


def config_of(kind):
    """The configuration of "binarybert W2A8"."""
    method, precision = kind.split()
    return BitConfig.from_precision(precision, method)


def binary(architecture="bert", head="sequence", kind="bit W1A1", **options):
    """A binary model whose alphas and betas are not at their first values."""
    return warm_up(binarize(tiny(architecture, head, **options), config_of(kind)))


def same(found, expected):
    """Whether two models' states are equal, to the last bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def assert_same_gradients(found, expected):
    """To the rounding of the largest of their kind (alpha, beta, weight): one alone may be a sum that cancels."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        kind = name.rpartition(".")[2]
        size = max(g.abs().max().item() for other, g in expected.items() if other.rpartition(".")[2] == kind)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-7 * size, msg=lambda m, n=name: f"{n}: {m}")


# ------------------------------------------------------------------------------------------------ commands and runs


def python(*arguments, **environment):
    """What a Python process of its own prints, which has one thread and this bitlab; it has to end well."""
    root = str(Path(cli.__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Killed(BaseException):
    """Like a kill, but in this process: nothing in the library may catch it."""


def silent(line):
    """A report that goes nowhere."""


@contextmanager
def cheaply():
    """One thread and no compiler are the fastest way through models this small; and every Trainer collects garbage at
    its start, for which what the imports made need not be looked through."""
    gc.freeze()
    with torch_threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITLAB_COMPILE", "off")
        yield
    gc.unfreeze()


def refusal(function, *arguments, **options):
    """What the BitlabError says in which a call ends."""
    with pytest.raises(BitlabError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def refused(capsys, *arguments):
    """The one line on standard error of a command that leaves with 2 and writes nothing here."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("bitlab: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in out and sorted(Path.cwd().rglob("*")) == before
    return err


def save(model, folder):
    """A model's folder, with the sample tokenizer's words."""
    model.save_pretrained(folder)
    sample_tokenizer().save_pretrained(folder)
    return folder


def write_glue(root, name, splits):
    """A task's TSV files in the original layout; CoLA's have no header."""
    task, columns = get_task(name), layout(get_task(name))
    (root / task.folder).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = [] if task.name == "cola" else [(*columns.text, columns.label)]
        for row in rows:
            label = task.label_names[row["label"]] if columns.words else row["label"]
            texts = [row[column] for column in task.text_columns]
            lines.append(("gj04", label, "", *texts) if task.name == "cola" else (*texts, label))
        text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
        (root / task.folder / file_names(task)[split]).write_text(text)
    return root


def write_squad(folder, splits):
    """SQuAD's files, train-v1.1.json and dev-v1.1.json: a paragraph a question."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        paragraphs = []
        for row in rows:
            answers = [dict(zip(row["answers"], pair)) for pair in zip(*row["answers"].values())]
            question = {"id": row["id"], "question": row["question"], "answers": answers}
            paragraphs.append({"context": row["context"], "qas": [question]})
        document = {"version": "1.1", "data": [{"title": "Sample", "paragraphs": paragraphs}]}
        (folder / f"{split.replace('validation', 'dev')}-v1.1.json").write_text(json.dumps(document))
    return folder


def real(*names):
    """The first of these that is in the folder of real data; the test is skipped where none is."""
    path = next((REAL / name for name in names if (REAL / name).exists()), None)
    return path or pytest.skip(f"no {names[0]} in {REAL}")
