"""The eight GLUE tasks and SQuAD v1.1: columns, labels, metrics, and the settings the BiT paper trains them with.

Everything here is a fact about a task; nothing here loads or computes. Names and label orders are the hub's
(`nyu-mll/glue`, `rajpurkar/squad`).
"""

from dataclasses import dataclass
from difflib import get_close_matches

from bitlab.errors import BitlabError


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    `label_names` is in the hub's order, None for a regression. `teacher` is the id of a published BERT-base
    fine-tuned on the task and `teacher_labels` the order of *its* logits, which for MNLI is another one.
    `published_score` is the full-precision BERT-base number of the BiT paper, as a fraction.
    `epochs`, `max_length` (tokens), `batch_size` and `learning_rate` are those of a distillation stage.
    """

    name: str
    title: str
    folder: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    epochs: int
    max_length: int
    batch_size: int
    learning_rate: float
    published_score: float
    teacher_labels: tuple[str, ...] | None = None
    eval_splits: tuple[str, ...] = ("validation",)

    @property
    def teacher(self) -> str:
        """Hub id of the published full-precision teacher."""
        return f"textattack/bert-base-uncased-{self.folder}"

    @property
    def is_regression(self) -> bool:
        """True where the label is a number (STS-B: 0 to 5) instead of a class."""
        return self.label_names is None

    @property
    def num_labels(self) -> int:
        """Width of the classifier: one per class, 1 for a regression."""
        return 1 if self.label_names is None else len(self.label_names)

    @property
    def problem_type(self) -> str:
        """The name transformers gives to the kind of loss."""
        return "regression" if self.is_regression else "single_label_classification"


@dataclass(frozen=True)
class SquadTask:
    """SQuAD v1.1: find the answer's span in a paragraph. Lengths are in tokens."""

    name: str = "squad"
    title: str = "SQuAD v1.1"
    folder: str = "squad"
    text_columns: tuple[str, ...] = ("question", "context")
    metrics: tuple[str, ...] = ("exact_match", "f1")
    epochs: int = 3
    max_length: int = 384
    stride: int = 128
    max_query_length: int = 64
    batch_size: int = 16
    learning_rate: float = 3e-5
    published_score: float = (0.826 + 0.897) / 2
    teacher: str = "csarron/bert-base-uncased-squad-v1"
    eval_splits: tuple[str, ...] = ("validation",)
    num_labels: int = 2  # a start and an end logit per token


PAIR = ("sentence1", "sentence2")
ENTAILS = ("entailment", "not_entailment")
ACCURACY, ACCURACY_F1 = ("accuracy",), ("accuracy", "f1")

_GLUE = (
    #    name, title, folder, text columns, labels, metrics, epochs, length, batch, lr, published score
    Task("cola", "CoLA", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",),
         50, 64, 16, 5e-4, 0.597),
    Task("sst2", "SST-2", "SST-2", ("sentence",), ("negative", "positive"), ACCURACY, 10, 64, 8, 1e-4, 0.932),
    Task("mrpc", "MRPC", "MRPC", PAIR, ("not_equivalent", "equivalent"), ACCURACY_F1,
         20, 128, 8, 5e-4, 0.863),
    Task("stsb", "STS-B", "STS-B", PAIR, None, ("pearson", "spearman"), 20, 128, 8, 5e-4, 0.901),
    Task("qqp", "QQP", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ACCURACY_F1,
         6, 128, 32, 2e-4, 0.914),
    Task("mnli", "MNLI", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ACCURACY,
         6, 128, 16, 2e-4, 0.849, teacher_labels=("contradiction", "entailment", "neutral"),
         eval_splits=("validation_matched", "validation_mismatched")),
    Task("qnli", "QNLI", "QNLI", ("question", "sentence"), ENTAILS, ACCURACY, 10, 128, 8, 2e-4, 0.921),
    Task("rte", "RTE", "RTE", PAIR, ENTAILS, ACCURACY, 20, 128, 8, 5e-4, 0.722),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _GLUE}
SQUAD = SquadTask()


def get_task(name: str | Task | SquadTask) -> Task | SquadTask:
    """The task of that name ("rte", also as the papers write it: "RTE", "SST-2"; "squad" for SQuAD v1.1).

    A task object is returned as it is. Raises BitlabError, with the known names, for anything else.
    """
    if isinstance(name, Task | SquadTask):
        return name
    known = TASKS | {SQUAD.name: SQUAD}
    key = str(name).lower().replace("-", "").replace("_", "")
    if key in known:
        return known[key]
    near = get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise BitlabError(f"unknown task {name!r}: known are {', '.join(known)}.{hint}")


def get_glue_task(name: str | Task) -> Task:
    """As `get_task`, and refuses SQuAD, which is no GLUE task."""
    task = get_task(name)
    if not isinstance(task, Task):
        raise BitlabError(f"{task.name!r} is no GLUE task: known are {', '.join(TASKS)}.")
    return task
