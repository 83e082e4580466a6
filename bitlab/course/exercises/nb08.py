"""Exercises of notebook 08, packed inference, and its capstone: a model of the reader's own, float to clock."""

import copy
import statistics
import tempfile
import time
from unittest.mock import patch

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from bitlab.convert import binarize
from bitlab.course.exercises import small
from bitlab.course.exercises.registry import attempted, exercise
from bitlab.layers import BinaryLinear
from bitlab.packed import load_packed, save_packed
from bitlab.packed.layers import PackedLinear

LARGEST = 2**16  # bytes of the capstone's packed file
SHORTEST = 32  # positions that its model has at least


@exercise("08.1", "Bytes of a packed layer", difficulty=1, minutes=6)
class PackedBytes:
    cases = [(768, 768), (768, 3072), (100, 3), (7, 9)]

    def reference(inputs, outputs):
        return outputs * -(-inputs // 8) + 4 * (outputs + inputs + 1 + 1)

    def wrong(inputs, outputs):  # a row ends with a whole byte
        return inputs * outputs / 8 + 4 * (outputs + inputs + 1 + 1)


@exercise("08.2", "Two bits are two planes", difficulty=2, minutes=12)
class TwoPlanes:
    cases = [([-2, -1, 0, 1], 0b0110), ([1] * 9, 0b101010101), ([-2, 1, -1] * 20, 2**37 - 5), ([0, 0, 0], 0)]

    def reference(codes, w):
        return sum(code * (1 if w >> place & 1 else -1) for place, code in enumerate(codes))

    def unsigned(codes, w):  # the highest plane counts +2
        return sum((code % 4) * (1 if w >> place & 1 else -1) for place, code in enumerate(codes))

    def signs(codes, w):  # of the codes, one bit of two
        return sum((1 if code > 0 else -1) * (1 if w >> place & 1 else -1) for place, code in enumerate(codes))

    wrong = [unsigned, signs]


@exercise("08.3", "Folding behind a ReLU", difficulty=2, minutes=10)
class FoldRelu:
    cases = [
        (0.5, 0.1, 0.6, 0.3, 8),
        (0.031, -0.4, 0.2, 0.1, 64),
        (0.2, 0.0, 1.0, -0.5, 4),
        (0.2, 0.0, 0.4, -0.3, 5),
        (0.1, -5.0, 1.0, 0.0, 6),
        (0.1, 5.0, 1.0, 0.0, 6),
    ]

    def reference(scale, bias, alpha, beta, n):
        passing = (s for s in range(-n, n + 1, 2) if max(0.0, bias + scale * s) - beta > alpha / 2)
        return next(passing, n + 2)

    def no_relu(scale, bias, alpha, beta, n):  # with a beta far below zero, ReLU's zero passes
        return next((s for s in range(-n, n + 1, 2) if bias + scale * s - beta > alpha / 2), n + 2)

    def sign(scale, bias, alpha, beta, n):  # the other set's threshold
        return next((s for s in range(-n, n + 1, 2) if max(0.0, bias + scale * s) >= beta), n + 2)

    wrong = [no_relu, sign]


# Capstone 2


def _packed_size(model: nn.Module) -> int:
    """Bytes of the file of a copy, made binary, its scales set by one batch."""
    student = binarize(copy.deepcopy(model)).train()
    student(input_ids=torch.full((2, 7), 5))
    with tempfile.TemporaryDirectory() as folder:
        return save_packed(student.eval(), folder).stat().st_size


@exercise("08.4", "Capstone 2: a model for 64 KiB", difficulty=2, minutes=10)
class OwnModel:
    def judge(answer):
        model = attempted(answer(small.VOCABULARY))
        if problem := small.no_classifier(model, tokens=SHORTEST - 2):
            return problem
        size = _packed_size(model)
        return None if size <= LARGEST else f"expected a packed file of at most {LARGEST:,} bytes, got {size:,}"

    def _made(vocabulary, width=96, layers=2, **changes):
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 2 * width}
        sizes |= {"num_attention_heads": width // 32, "max_position_embeddings": 32, "initializer_range": 0.08}
        return BertForSequenceClassification(BertConfig(vocab_size=vocabulary, **(sizes | changes)))

    reference = _made

    def all_positions(vocabulary):  # 512 of them, in float, weigh more than everything else
        return OwnModel._made(vocabulary, max_position_embeddings=512)

    def deep(vocabulary):  # small weights, but thresholds and a header for each layer
        return OwnModel._made(vocabulary, layers=6)

    def binary(vocabulary):
        return binarize(OwnModel._made(vocabulary))

    wrong = [all_positions, deep, binary]


def _taught(teacher: nn.Module, batches: list) -> nn.Module:
    student = binarize(copy.deepcopy(teacher).requires_grad_(True))
    small.taught(student.train(), teacher, batches)
    return student.eval()


@exercise("08.5", "Capstone 2: a student that has learned", difficulty=2, minutes=15)
class OwnTraining:
    def judge(answer):
        teacher, batches = small.bert().requires_grad_(False), small.batches()
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        fresh = binarize(copy.deepcopy(teacher)).train()
        fresh(**batches[0])
        student = attempted(answer(teacher, batches))
        after = teacher.state_dict()
        if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
            return "expected the teacher to stay as it is, got another one: copy it first, and train the copy alone"
        if not any(isinstance(module, BinaryLinear) for module in student.modules()):
            return "expected a binary student, got a float one"
        if student.training:
            return "expected the student in eval mode, got one in training"
        start, end = (small.distance(model.eval(), teacher, batches) for model in (fresh, student))
        if not end < 0.75 * start:
            return f"expected logits nearer to the teacher's by a quarter at least, got {end:.3f} after {start:.3f}"
        return None

    reference = _taught

    def untrained(teacher, batches):
        student = binarize(copy.deepcopy(teacher).requires_grad_(True)).train()
        student(**batches[0])
        return student.eval()

    def in_place(teacher, batches):
        return binarize(teacher)

    def float_student(teacher, batches):
        return copy.deepcopy(teacher)

    def left_in_training(teacher, batches):
        return _taught(teacher, batches).train()

    wrong = [untrained, in_place, float_student, left_in_training]


@exercise("08.6", "Capstone 2: pack it", difficulty=2, minutes=5)
class OwnPacking:
    def judge(answer):
        batches = small.batches(2)
        student = binarize(small.bert()).train()
        student(**batches[0])
        student.eval()
        with tempfile.TemporaryDirectory() as folder:
            packed = attempted(answer(student, folder))
            try:
                stored = load_packed(folder)
            except Exception as error:
                return f"expected a packed model in the folder, got: {error}".replace(repr(folder), "it")
        if not any(isinstance(module, PackedLinear) for module in packed.modules()):
            return "expected the packed model back, got the latent one"
        if packed is student or not any(isinstance(module, BinaryLinear) for module in student.modules()):
            return "expected the student to stay as it is, got a changed one"
        with torch.no_grad():
            said, wanted = packed(**batches[1]).logits, stored(**batches[1]).logits
        return None if torch.equal(said, wanted) else "expected what the folder holds, got other answers"

    def reference(student, folder):
        save_packed(student, folder)
        return load_packed(folder)

    def latent(student, folder):
        student.save_pretrained(folder)
        return student

    def not_loaded(student, folder):
        save_packed(student, folder)
        return student

    wrong = [latent, not_loaded]


class _Slow:
    """A model that takes the time that it is told: its calls move the clock, and nothing else does."""

    def __init__(self, clock: list[float], log: list[str], name: str, seconds: list[float]):
        self.clock, self.log, self.name, self.seconds = clock, log, name, list(seconds)

    def __call__(self, **batch):
        self.log.append(self.name + ("" if not torch.is_grad_enabled() else " with gradients"))
        self.clock[0] += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


@exercise("08.7", "Capstone 2: an honest stopwatch", difficulty=3, minutes=15)
class OwnClock:
    def judge(answer):
        clock, log = [0.0], []
        first = _Slow(clock, log, "first", [9.0, 2.0, 2.0, 8.0, 2.0, 2.0])
        models = {"first": first, "second": _Slow(clock, log, "second", [30.0, 5.0])}
        clocks = ("process_time", "perf_counter", "monotonic", "time", "thread_time")
        fake = {name: lambda: clock[0] for name in clocks}
        fake |= {f"{name}_ns": lambda: int(clock[0] * 1e9) for name in clocks}
        with patch.multiple(time, **fake):
            found = attempted(answer(models, {"input_ids": torch.ones(1, 4)}, 5))
        if any(name.endswith("gradients") for name in log):
            return "expected calls without gradients, got some that keep them"
        if not isinstance(found, dict) or found.keys() != models.keys():
            return f"expected a dictionary of {' and '.join(models)}, got {found!r:.60}"
        if log.count("first") != 6 or log.count("second") != 6:
            return f"expected 5 rounds after one call to warm up, got {log.count('first')} calls of the first model"
        if log[2:] not in (["first", "second"] * 5, ["second", "first"] * 5):
            return "expected the models in turns, got one after the other"
        for name, seconds in (("first", 2.0), ("second", 5.0)):
            if abs(found[name] - seconds) > 1e-6:
                return f"expected the median of the counted calls, {seconds} seconds of the {name}, got {found[name]}"
        return None

    def _measured(models, batch, rounds, average=statistics.median, skip=1, in_turns=True):
        times = {name: [] for name in models}
        calls = range(rounds + skip)
        order = [(n, m) for _ in calls for n, m in models.items()]
        if not in_turns:
            order = [(n, m) for n, m in models.items() for _ in calls]
        for name, model in order:
            began = time.process_time()
            model(**batch)
            times[name].append(time.process_time() - began)
        return {name: average(each[skip:]) for name, each in times.items()}

    reference = torch.no_grad()(_measured)

    @torch.no_grad()
    def cold(models, batch, rounds):  # the first call counts
        return OwnClock._measured(models, batch, rounds, skip=0)

    @torch.no_grad()
    def mean(models, batch, rounds):  # one call that something else delayed moves it
        return OwnClock._measured(models, batch, rounds, average=statistics.mean)

    @torch.no_grad()
    def one_by_one(models, batch, rounds):
        return OwnClock._measured(models, batch, rounds, in_turns=False)

    def with_gradients(models, batch, rounds):
        return OwnClock._measured(models, batch, rounds)

    wrong = [cold, mean, one_by_one, with_gradients]
