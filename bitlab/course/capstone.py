"""The capstones: what the reader has filled in, run from end to end."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from bitlab.cost import summary
from bitlab.course import exercises
from bitlab.course.lab import Lab


def filled(*answers: tuple[str, Callable]) -> bool:
    """Whether these answers, as (exercise, function), are there and pass; prints which ones are missing."""
    missing = []
    for id, answer in answers:
        try:
            passed = exercises.find(id).judge(answer) is None
        except Exception:  # an answer that raises, or none yet
            passed = False
        missing += [] if passed else [id]
    if missing:
        print(f"to run from end to end, fill in {', '.join(missing)} first")
    return not missing


def binary_encoder(lab: Lab, data, encoder: Callable, student: Callable, measure: Callable, teach: Callable) -> None:
    """Capstone 1 from end to end: an encoder trained in float, made binary, measured, taught, measured again.

    Args:
        lab, data: of the notebook.
        encoder, student, measure, teach: the reader's functions, exercises 05.4 to 05.7.
    """
    if not filled(("05.4", encoder), ("05.5", student), ("05.6", measure), ("05.7", teach)):
        return
    teacher = _teacher(lab, data, encoder)
    batches = _batches(data, data.train, 1600, size=32, device=lab.device)
    held_out = _batches(data, _dev(data), 250, size=50, device=lab.device)
    taught = student(teacher)
    taught.train()(**batches[0])  # alphas
    print("before", _line(measure(teacher, taught.eval(), held_out)))
    for _ in range(3):
        teach(taught.train(), teacher, batches)
    print("after ", _line(measure(teacher, taught.eval(), held_out)))


def _teacher(lab: Lab, data, model: Callable) -> PreTrainedModel:
    """The reader's model, trained in float, which learns no more."""
    teacher = model(len(data.tokenizer)).to(lab.device)
    lab.train(teacher, data, steps=400, learning_rate=1e-3)
    return teacher.eval().requires_grad_(False)


def _dev(data) -> Dataset:
    return next(iter(data.evaluations.values()))


def _batches(data, rows: Dataset, most: int, size: int, device="cpu") -> list:
    """The first rows, `most` of them where there are so many."""
    places = range(min(most, len(rows)))
    parts = (places[at : at + size] for at in places[::size])
    return [data.collate([rows[i] for i in part]).to(device) for part in parts]


def _line(found: dict[str, float]) -> str:
    return f"float {found['float']:.3f}, binary {found['binary']:.3f}, {found['smaller']:.1f} times smaller"


def packed_model(lab: Lab, data, model: Callable, train: Callable, pack: Callable, clock: Callable) -> None:
    """Capstone 2 from end to end: a float model trained, its binary student taught, packed, and timed beside it.

    Args:
        lab, data: of the notebook.
        model, train, pack, clock: the reader's functions, exercises 08.4 to 08.7.
    """
    if not filled(("08.4", model), ("08.5", train), ("08.6", pack), ("08.7", clock)):
        return
    teacher = _teacher(lab, data, model)
    batches = lab.lessons(data, seed=1, steps=300, size=32)
    student = train(teacher, batches).cpu()
    with tempfile.TemporaryDirectory() as folder:
        packed = pack(student, Path(folder) / "packed")
        size = (Path(folder) / "packed" / "model.safetensors").stat().st_size
    models = {"float": teacher.cpu(), "binary, bits in floats": student, "binary, packed": packed}
    one = data.collate([data.train[0]])
    seconds = clock(models, {"input_ids": one["input_ids"], "attention_mask": one["attention_mask"]}, 21)
    for name, each in models.items():
        kib = size / 1024 if each is packed else summary(each).mib * 1024 if each is teacher else None
        weight = f"{kib:6.0f} KiB" if kib else f"{'':10}"
        print(f"{name:22} accuracy {_accuracy(each, data):.3f}, {weight}, {seconds[name] * 1e3:6.2f} ms a sentence")


@torch.no_grad()
def _accuracy(model, data) -> float:
    """On dev; of packed models too, which no Trainer takes."""
    batches = _batches(data, _dev(data), len(_dev(data)), size=50)
    right = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
    return torch.cat(right).float().mean().item()
