"""The capstones: what the reader has filled in, run from end to end."""

from collections.abc import Callable

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
    teacher = encoder(len(data.tokenizer)).to(lab.device)
    lab.train(teacher, data, steps=300, learning_rate=5e-4)
    teacher.eval().requires_grad_(False)
    batches = _batches(lab, data, data.train, 1600, size=32)
    held_out = _batches(lab, data, next(iter(data.evaluations.values())), 250, size=50)
    taught = student(teacher)
    taught.train()(**batches[0])  # alphas
    print("before", _line(measure(teacher, taught.eval(), held_out)))
    for _ in range(3):
        teach(taught.train(), teacher, batches)
    print("after ", _line(measure(teacher, taught.eval(), held_out)))


def _batches(lab: Lab, data, rows, most: int, size: int) -> list:
    """The first rows, `most` of them where there are so many."""
    places = range(min(most, len(rows)))
    parts = (places[at : at + size] for at in places[::size])
    return [data.collate([rows[i] for i in part]).to(lab.device) for part in parts]


def _line(found: dict[str, float]) -> str:
    return f"float {found['float']:.3f}, binary {found['binary']:.3f}, {found['smaller']:.1f} times smaller"
