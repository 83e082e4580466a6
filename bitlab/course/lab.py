"""What the notebooks share: the set-up cell, the presets, and the check of an exercise.

The set-up cell of every notebook:

    import bitlab.course
    from bitlab.course import check
    from bitlab.course.plots import show

    MODEL = "minilm"  # the model of BITLAB_PRESET=full, or a hub id such as "bert-base-uncased"
    lab = bitlab.course.start("02", MODEL)

Then `lab.pick(quick=300, full=5000)` wherever a number depends on the preset, `lab.claim(condition, "what")` for what
must be seen on the sample data, and `check("02.1", answer)` under each exercise (see `bitlab.course.exercises` for
how one is added). Environment variables: BITLAB_PRESET is quick (default) or full; BITLAB_STRICT=1 makes `check`
raise; BITLAB_HEADLESS, set by the runner, leaves out what needs a person.
"""

import gc
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bitlab.course import exercises
from bitlab.errors import BitlabError

PRESETS = ("quick", "full")


@dataclass(frozen=True)
class Lab:
    """One notebook's session: its number ("02"), preset, seed, device, and the model of its full preset."""

    notebook: str
    preset: str
    seed: int
    device: torch.device
    full_model: str = "minilm"

    @property
    def full(self) -> bool:
        """True in the full preset: real data and models."""
        return self.preset == "full"

    def pick(self, *, quick, full):
        """The value for the current preset. Only numbers and names differ between presets, never the code."""
        return full if self.full else quick

    @property
    def model(self) -> str:
        """The starting point of this preset: "sample", or what the notebook's switch names in full."""
        return self.pick(quick="sample", full=self.full_model)

    def claim(self, holds: bool, what: str) -> None:
        """Print `what` the notebook says one should see, and hold it to that.

        On sample data a claim that fails is an AssertionError. In full, after hours, on other data and another model,
        it is a line that says so.
        """
        assert holds or self.full, f"not seen: {what}"
        print(f"{'seen' if holds else 'not seen with this model and these data'}: {what}")

    def score(self, model, data) -> float:
        """The task's number on dev, as a fraction (accuracy, for sst2)."""
        from bitlab.experiments import evaluate

        return evaluate(model, data)[0]

    def data(self, task: str = "sst2"):
        """A GLUE task's tokens (an `experiments.prepared.Prepared`): sample data, or real data in the full preset."""
        from bitlab.data.sources import resolve_source
        from bitlab.data.tasks import get_task
        from bitlab.experiments.prepared import prepare
        from bitlab.models import load_tokenizer

        source, why = resolve_source("auto" if self.full else "sample")
        if self.full:
            print(why if source in ("sample", "hub") else "data: the folder that BITLAB_DATA names")
        return prepare(get_task(task), source, load_tokenizer(self.model))

    def teacher(self, data, steps: int | None = None, seed: int = 0):
        """A full-precision model fine-tuned on `data` (300 steps of 32, 1,500 in full), in eval mode."""
        from bitlab.models import load_model

        model = load_model(self.model, data.task, seed=seed)
        steps = steps or self.pick(quick=300, full=1500)
        self.train(model, data, steps=steps, learning_rate=self.pick(quick=5e-4, full=5e-5), seed=seed)
        return model.eval()

    def train(
        self,
        model,
        data,
        teacher=None,
        steps: int = 400,
        learning_rate: float = 5e-4,
        seed: int = 0,
        alpha_learning_rate: float = 1e-4,
        **options,
    ) -> list[dict]:
        """Train `model` in place on the labels of `data`, or by distillation from `teacher`.

        Args:
            steps: of 32 examples each; the rate rises over a tenth of them to `learning_rate` and falls to 0.
            alpha_learning_rate: the same for the scales of a binary model.
            options: for `bitlab.DistillationTrainer`, for instance `distillation=DistillationConfig(hidden=0)`.
        Returns:
            The log, one dict every so many steps: step, loss and its terms.
        """
        from transformers import set_seed

        from bitlab.experiments.schedule import StageSettings
        from bitlab.experiments.stage import train_stage

        rates = {"learning_rate": learning_rate, "alpha_learning_rate": alpha_learning_rate}
        settings = StageSettings(epochs=10_000, batch_size=32, max_steps=steps, **rates)
        teachers = [] if teacher is None else [teacher]
        set_seed(seed)
        title = None if headless() else "train"
        trained = train_stage(model, teachers, data.train, data.collate, settings, seed=seed, title=title, **options)
        return [entry for entry in trained.log if "loss" in entry]

    def lessons(self, data, seed: int, steps: int, size: int = 16) -> list[dict]:
        """Shuffled training examples without their labels: for each step a batch, on this lab's device."""
        shuffle, rows = random.Random(seed), []
        while len(rows) < steps * size:
            rows += shuffle.sample(range(len(data.train)), len(data.train))
        parts = (data.collate([data.train[i] for i in rows[at : at + size]]) for at in range(0, steps * size, size))
        return [{name: x.to(self.device) for name, x in part.items() if name != "labels"} for part in parts]

    def stored(self, prefix: str) -> dict[str, dict[int, float]]:
        """Final scores in results/ of the runs whose name begins with `prefix`: the rest of the name -> seed -> score.

        "sst2-sample-" finds "sst2-sample-one-step-seed0" as {"one-step": {0: 0.8}}. Empty if there are none.
        """
        from bitlab import results

        runs = results.load().groupby("name").last()
        runs["begin"] = runs.index.str.rpartition("-seed").get_level_values(0)
        runs = runs[runs.begin.str.startswith(prefix)]
        return {begin.removeprefix(prefix): dict(zip(g.seed, g.score)) for begin, g in runs.groupby("begin")}


def start(notebook: str, model: str = "minilm", seed: int = 0) -> Lab:
    """Begin a notebook: seeds, preset, plot style, quiet libraries; prints one line of versions.

    Args:
        notebook: its number as in its file name, "02".
        model: what the full preset starts from: "minilm", a hub id or a folder.
        seed: for Python's, NumPy's and torch's generators.
    Raises:
        BitlabError: if BITLAB_PRESET is neither quick nor full.
    """
    from transformers import set_seed

    from bitlab.course import plots  # matplotlib is a need of the notebooks, not of who only calls `check`

    lab = Lab(notebook, preset(), seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"), model)
    set_seed(seed)
    plots.use_style()
    quiet(progress=lab.full and not headless())
    if not lab.full:
        torch.set_num_threads(1)  # the sample model is too small for more, and a busy machine makes them wait
    print(f"{versions()} | preset {lab.preset}, seed {seed}, {lab.device}")
    gc.freeze()  # every training ends with a search for garbage; among the libraries loaded by now there is none
    return lab


def preset() -> str:
    """BITLAB_PRESET, or "quick"."""
    name = os.environ.get("BITLAB_PRESET", "").strip().lower() or "quick"
    if name not in PRESETS:
        raise BitlabError(f"BITLAB_PRESET is {name!r}: set it to quick or full, or leave it unset for quick")
    return name


def headless() -> bool:
    """True where nobody can move a slider: under pytest, or where BITLAB_HEADLESS is set."""
    return "PYTEST_VERSION" in os.environ or "BITLAB_HEADLESS" in os.environ


def quiet(progress: bool = False) -> None:
    """Keep library chatter off the page: progress bars (unless `progress`), advice, other packages'
    deprecations."""
    import datasets
    import transformers

    (transformers.logging.set_verbosity_warning if progress else transformers.logging.set_verbosity_error)()
    (transformers.logging.enable_progress_bar if progress else transformers.logging.disable_progress_bar)()
    (datasets.enable_progress_bars if progress else datasets.disable_progress_bars)()
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)


def versions() -> str:
    """For instance "bitlab 0.1 | Python 3.11 | torch 2.13 | transformers 5.23": major and minor numbers."""
    from bitlab.experiments import environment  # slow to load, and `check` does not need it

    found = environment.versions()
    shown = ("bitlab", "Python", "torch", "transformers")
    return " | ".join(f"{name} {'.'.join(found[name.lower()].split('.')[:2])}" for name in shown)


class ExerciseError(AssertionError):
    """With BITLAB_STRICT=1: an exercise that is not passed."""


def check(id: str, answer: Callable) -> None:
    """Judge an answer to an exercise and print one line: passed, what was expected and got, or not attempted.

    Args:
        id: "02.1" is the first exercise of notebook 02.
        answer: the reader's function. One that returns NotImplemented counts as not attempted.
    Raises:
        BitlabError: for an unknown id.
        ExerciseError: unless passed, if BITLAB_STRICT=1. Otherwise nothing, also if the answer itself raises, so that
            "Run All" always reaches the last cell.
    """
    entry = exercises.find(id)
    cause = None
    try:
        mismatch = entry.judge(answer)
        verdict = f"not passed: {mismatch}" if mismatch else "passed"
    except NotImplementedError:
        stars = "*" * entry.difficulty
        verdict = f"not attempted yet ({stars} about {entry.minutes} min)"
    except Exception as error:
        cause, verdict = error, f"not passed: your function raised {type(error).__name__}: {error}"
    line = f"Exercise {id}, {entry.title}: {verdict}"
    if verdict != "passed" and os.environ.get("BITLAB_STRICT", "0") not in ("", "0"):
        raise ExerciseError(line) from cause
    print(line)
