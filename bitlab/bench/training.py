"""`bitlab bench train`: what a step of binary distillation costs, beside a plain fine-tuning step on the same batch.

A step is transformers' own: forward, backward, clipping, optimizer. The rows:

    fine-tuning               torch as it comes, float32: 1.0
    fine-tuning, medium       float32 products in their fastest form (`bitlab.compiled.fast_products`)
    fine-tuning, bf16         and in mixed precision
    distillation              a W1A1 student and its teacher, with every measure; its forward multiplies int8 codes
    distillation, bf16        and in mixed precision (`--bf16`)
    ..., teacher kept         with answers kept, as in every training of more epochs than one (`kept_outputs`)
    ..., no dropout           and without dropout, as most of the stored rows are trained
    ..., first epoch          a step and its share of the answers, which are taken before in batches of 32 of one length
    without ...               with every measure but one
    as released               no measure, and the released program's loss, optimizer and teacher

Beside the batch of one length stands the regime of the paper's budgets: batches of 8 and 16 sentences as long as the
pairs of STS-B are, padded to the longest of them. "First epoch" is of that regime alone.
"""

import copy
import os
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, default_data_collator

from bitlab import compiled, products, upstream
from bitlab.bench.timing import measure, ratio, session
from bitlab.compiled import fast_products
from bitlab.convert import binarize
from bitlab.data.tasks import get_glue_task
from bitlab.distillation import DistillationTrainer
from bitlab.distillation.optim import ClippingAdamW
from bitlab.distillation.sampling import LONG_STRETCH, BucketSampler
from bitlab.distillation.teacher_outputs import BATCH, PLACES, KeptOutputs, kept_outputs
from bitlab.distillation.trainer import LONG
from bitlab.experiments import environment
from bitlab.experiments.prepared import prepare
from bitlab.experiments.stage import arguments, set_dropout
from bitlab.methods import DistillationConfig
from bitlab.models import load_tokenizer

BASELINE, BASELINE_BF16 = "fine-tuning", "fine-tuning, bf16"
OURS, OURS_BF16 = "distillation", "distillation, bf16"
KEPT, KEPT_BF16 = f"{OURS}, teacher kept", f"{OURS_BF16}, teacher kept"
REST, REST_BF16 = f"{KEPT}, no dropout", f"{KEPT_BF16}, no dropout"
FIRST_EPOCH = ", first epoch"
REAL = {BASELINE: (OURS, KEPT, REST), BASELINE_BF16: (OURS_BF16, KEPT_BF16, REST_BF16)}  # raced on real lengths
REAL_BATCHES, IN_A_ROW = (8, 16), 4  # steps of one contender in a row, as in a training: the first finds cold caches
# tokens of STS-B's pairs, in equal shares; 27.8 on average
LENGTHS = (14, 16, 16, 17, 18, 18, 19, 19, 20, 21, 21, 22, 23, 24, 25, 26, 28, 30, 32, 37, 43, 50, 58, 69)


@dataclass(frozen=True)
class Shape:
    """A BERT encoder and a batch for it; the default is MiniLM's. `heads` have 32 channels each."""

    layers: int = 6
    width: int = 384
    batch: int = 16
    length: int = 128
    vocabulary: int = 30_522

    def model(self) -> BertForSequenceClassification:
        sizes = {"hidden_size": self.width, "num_attention_heads": self.width // 32}
        sizes |= {"num_hidden_layers": self.layers, "intermediate_size": 4 * self.width}
        return BertForSequenceClassification(BertConfig(vocab_size=self.vocabulary, **sizes))

    def inputs(self, lengths: list[int] | None = None) -> dict[str, torch.Tensor]:
        """A batch of sentences of these lengths, padded to the longest; without padding if None."""
        lengths = torch.tensor(lengths or [self.length] * self.batch)
        ids = torch.randint(5, self.vocabulary, (len(lengths), int(lengths.max())))
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(2, (len(ids),))}


MINILM = Shape()


@dataclass(frozen=True)
class Measures:
    """What makes a step fast, each to be left out: see the list at the head of this module."""

    distil: bool = True
    compiled: bool = True
    fast_products: bool = True
    resting_teacher: bool = True
    bf16: bool = False
    teacher_kept: bool = False
    dropout: bool = True
    released: bool = False


CONTENDERS = {
    BASELINE: Measures(distil=False, fast_products=False),
    "fine-tuning, medium": Measures(distil=False),
    BASELINE_BF16: Measures(distil=False, bf16=True),
    OURS: Measures(),
    OURS_BF16: Measures(bf16=True),
    KEPT: Measures(teacher_kept=True),
    KEPT_BF16: Measures(bf16=True, teacher_kept=True),
    REST: Measures(teacher_kept=True, dropout=False),
    REST_BF16: Measures(bf16=True, teacher_kept=True, dropout=False),
    "without compiled formulas": Measures(compiled=False),
    "without fast products": Measures(fast_products=False),
    "teacher in training mode": Measures(resting_teacher=False),
    "as released": Measures(compiled=False, fast_products=False, resting_teacher=False, released=True),
}


class Step:
    """One training step of a model on `shape`, to be called again and again, with a batch or on the same one."""

    def __init__(self, shape: Shape, measures: Measures):
        self.measures, self.shape, self.inputs = measures, shape, shape.inputs()
        self.model = shape.model()
        options = arguments(bf16=measures.bf16)
        if measures.distil:
            teacher, loss = copy.deepcopy(self.model), DistillationConfig(teacher_dropout=not measures.resting_teacher)
            loss = DistillationConfig.released() if measures.released else loss
            student = binarize(self.model)
            set_dropout(student, None if measures.dropout else 0.0)
            self.trainer = DistillationTrainer(
                student, teacher, options, distillation=loss, released_optimizer=measures.released
            )
            if measures.teacher_kept:
                self.trainer.said = [self._said_by(teacher)]
        else:
            self.trainer = Trainer(self.model, options)
        self.optimizer = self.trainer.create_optimizer()
        self.trainer.accelerator.prepare_model(self.model)
        self.trainer.current_gradient_accumulation_steps = 1  # what Trainer.train() would set
        self.trainer.state.max_steps = LONG

    def _said_by(self, teacher) -> KeptOutputs:
        """As if the data set were one batch of the full length; a shorter batch looks up the first tokens."""
        batch = {name: x for name, x in self.shape.inputs().items() if name != "labels"}
        rows = Dataset.from_dict({name: x.tolist() for name, x in batch.items()})
        outputs = partial(self.trainer.resting_outputs, teacher)
        return kept_outputs(outputs, rows, default_data_collator, self.trainer.args.device)

    def answer(self, inputs: dict) -> None:
        """What is done once for a batch of sentences whose answers are kept."""
        with self._environment():
            self.trainer.resting_outputs(self.trainer.teachers[0], inputs)

    def __call__(self, inputs: dict | None = None) -> torch.Tensor:
        """Returns the loss before the step."""
        with self._environment():
            inputs = dict(inputs or self.inputs)
            if self.measures.teacher_kept:
                inputs[PLACES] = torch.arange(len(inputs["input_ids"])) % self.shape.batch
            loss = self.trainer.training_step(self.model, inputs)
            if isinstance(self.optimizer, ClippingAdamW):
                self.optimizer.clip(1.0)
            elif not self.measures.released:  # that optimizer clips by itself
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    @contextmanager
    def _environment(self):
        slow = patch.object(products, "int8_product_takes", lambda a, b: False)
        of_products = fast_products() if self.measures.fast_products else slow
        formulas = nullcontext() if self.measures.compiled else patch.dict(os.environ, {compiled.VARIABLE: "off"})
        with of_products, formulas:
            yield


def bench(shape: Shape = MINILM, rounds: int = 5, threads: int = 1, names=tuple(CONTENDERS)) -> dict:
    """Measure a step of each contender; returns what `bitlab bench train --json` prints.

    Each row: name, median seconds, ratio to the baseline's (median over the rounds), microseconds a token, and MiB:
    the most that tensors took at once during a step, weights and optimizer state included. "real" holds the rows on
    real lengths: batch, name, median seconds, and the ratio to the plain step of the same precision. Seconds are the
    process's own where one thread works on a CPU.
    """
    with session(threads):
        steps = {name: Step(shape, CONTENDERS[name]) for name in names}
        times = measure(steps, rounds)
        memory = {name: peak_memory(step) for name, step in steps.items()}
        real = [row for batch in REAL_BATCHES for row in _on_real_lengths(steps, shape, batch, rounds)]
    rows = [
        {
            "name": name,
            "seconds": statistics.median(seconds),
            "ratio": ratio(seconds, times[BASELINE]),
            "microseconds_a_token": 1e6 * statistics.median(seconds) / (shape.batch * shape.length),
            "mib": memory[name] / 2**20,
        }
        for name, seconds in times.items()
    ]
    return environment.report(threads) | {"shape": asdict(shape), "rounds": rounds, "rows": rows, "real": real}


def _on_real_lengths(steps: dict[str, Step], shape: Shape, batch: int, rounds: int) -> list[dict]:
    choose, rows = random.Random(0), []
    lengths = [min(length, shape.length) for length in LENGTHS]
    turns = [[shape.inputs(choose.choices(lengths, k=batch)) for _ in range(IN_A_ROW)] for _ in range(rounds + 2)]
    alike = torch.tensor(sorted(choose.choices(lengths, k=BATCH * (rounds + 2)))).view(-1, BATCH).tolist()
    alike = [[shape.inputs(each)] for each in choose.sample(alike, len(alike))]
    for plain, ours in REAL.items():
        calls = {name: partial(_in_a_row, steps[name], iter(turns)) for name in (plain, *ours) if name in steps}
        keeping = [name for name in calls if CONTENDERS[name].teacher_kept]
        if keeping:
            calls[FIRST_EPOCH] = partial(_in_a_row, steps[keeping[0]].answer, iter(alike))
        times = measure(calls, rounds)
        answers = [seconds * IN_A_ROW * batch / BATCH for seconds in times.pop(FIRST_EPOCH, [])]
        times |= {name + FIRST_EPOCH: list(map(sum, zip(times[name], answers))) for name in keeping}
        for name, seconds in times.items():
            median, share = statistics.median(seconds) / IN_A_ROW, ratio(seconds, times[plain])
            rows.append({"batch": batch, "name": name, "seconds": median, "ratio": share})
    return rows


def _in_a_row(call: Callable[[dict], object], turns: Iterator[list[dict]]) -> None:
    for batch in next(turns):
        call(batch)


def peak_memory(step: Step) -> int:
    """Bytes that tensors take at once during a step, at the most: weights, gradients, optimizer and what comes and
    goes. On a GPU the allocator's own count; on a CPU the sum of the allocations that torch's profiler saw."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    now = peak = 0
    for change in upstream.allocations(step):
        now += change
        peak = max(peak, now)
    models = [step.model, *getattr(step.trainer, "teachers", [])]  # and what stays between two steps
    tensors = [p for model in models for p in model.parameters()]
    tensors += [t for state in step.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return peak + sum(t.numel() * t.element_size() for t in tensors)


GROWTH = {"length": (32, 64, 128, 256, 512), "batch": (1, 4, 16, 64), "layers": (2, 4, 6, 12)}


def growth(shape: Shape = MINILM, rounds: int = 3, threads: int = 1, axes: dict = GROWTH) -> dict:
    """Seconds of a distillation step and of the plain one, at their fastest, as length, batch or layers grow."""
    found = {}
    with session(threads):
        for axis, values in axes.items():
            found[axis] = []
            for value in values:
                steps = {name: Step(replace(shape, **{axis: value}), CONTENDERS[name]) for name in (BASELINE, OURS)}
                times = measure(steps, rounds)
                found[axis].append({axis: value} | {name: min(times[name]) for name in steps})
    return environment.report(threads) | {"shape": asdict(shape), "rounds": rounds, "growth": found}


ORDERS = {"random order": 1, "by length": LONG_STRETCH}  # batches that are sorted together
FIXED_LENGTH_RATIO = 2.6  # the least that a step of the released program costs beside plain fine-tuning, as measured


def tasks(source: str, names=("cola", "sst2", "mrpc", "stsb", "rte"), rounds: int = 8, threads: int = 1) -> dict:
    """Real tokens a second on GLUE tasks: batches as they are trained on, against batches of the task's fixed length.

    For each task `rounds` batches of real lengths (the task's own batch size), in random order and by length
    (`bitlab.distillation.sampling`), each padded to its longest sentence; beside each, a plain fine-tuning step at
    the task's maximal length. Our step looks up what the teacher said, as in every epoch but the first. "times" is
    how many times more real tokens a second our step takes than a fixed-length step at 2.6 times the plain one would.
    """
    rows, tokenizer = [], load_tokenizer("minilm")
    with session(threads):
        for name in names:
            task = get_glue_task(name)
            data = prepare(task, source, tokenizer)
            lengths = [len(ids) for ids in data.train["input_ids"]]
            shape = Shape(batch=task.batch_size, length=task.max_length)
            rows.append({"task": name, "max_length": task.max_length} | _race(shape, lengths, rounds))
    return environment.report(threads) | {"against": FIXED_LENGTH_RATIO, "tasks": rows}


def _race(shape: Shape, lengths: list[int], rounds: int) -> dict:
    choose = random.Random(0)
    plain = Step(shape, CONTENDERS[BASELINE])
    row = {"real_length": statistics.mean(lengths)}
    for order, stretch in ORDERS.items():
        places = torch.tensor(list(BucketSampler(lengths, shape.batch, stretch=stretch)))
        batches = choose.sample([[lengths[i] for i in batch] for batch in places.split(shape.batch)], rounds)
        real = statistics.mean(map(sum, batches))
        row[order] = {"padded_length": statistics.mean(map(max, batches))}
        for name in (KEPT, KEPT_BF16):
            ours = Step(shape, CONTENDERS[name])
            turns = ([shape.inputs(batch)] for batch in [batches[0], batches[0], *batches])  # two warm up
            times = measure({BASELINE: plain, name: partial(_in_a_row, ours, turns)}, rounds)
            fixed = FIXED_LENGTH_RATIO * statistics.mean(times[BASELINE])
            mine = statistics.mean(times[name])
            row[order][name] = {"real_tokens_a_second": real / mine, "times": fixed / mine}
    return row


def table(result: dict) -> str:
    """A result of `bench`, `growth` or `tasks` for people to read."""
    lines = [f"{environment.told(result['machine'])}, torch {result['versions']['torch']}"]
    if "rows" in result:
        lines.append("{layers} layers, width {width}, batch {batch}, length {length}".format(**result["shape"]))
    for r in result.get("rows", []):
        cost = f"{r['microseconds_a_token']:7.1f} us a token  {r['mib']:7.0f} MiB"
        lines.append(f"  {r['name']:32} {r['ratio']:5.2f} x  {r['seconds'] * 1e3:8.1f} ms  {cost}")
    if result.get("real"):
        lines.append("as long as STS-B's pairs, beside the plain step of the same precision")
    for r in result.get("real", []):
        lines.append(f"  batch {r['batch']:2}: {r['name']:32} {r['ratio']:5.2f} x  {r['seconds'] * 1e3:8.1f} ms")
    for axis, points in result.get("growth", {}).items():
        lines += [f"  {axis} {p[axis]:4}: {p[OURS] * 1e3:9.1f} ms ({p[OURS] / p[BASELINE]:.2f} x)" for p in points]
    rates = result.get("tasks", [])
    for r in rates:
        lines.append(f"  {r['task']}: sentences of {r['real_length']:.1f} tokens, fixed length {r['max_length']}")
        for order, name in product(ORDERS, (KEPT, KEPT_BF16)):
            rate = r[order][name]
            speed = f"{rate['real_tokens_a_second']:6,.0f} real tokens a second"
            lines.append(f"    {order:12} {name:32} {speed}, {rate['times']:4.1f} times")
    for order, name in product(ORDERS if rates else (), (KEPT, KEPT_BF16)):
        mean = statistics.geometric_mean(r[order][name]["times"] for r in rates)
        lines.append(f"  geometric mean: {order:12} {name:32} {mean:4.1f} times")
    return "\n".join(lines)
