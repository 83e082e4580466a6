"""Tasks: the eight of GLUE, SQuAD v1.1, and your own. Columns, labels, metrics, and the settings of a training.

Everything here is a fact about a task; nothing here loads or computes. Names and label orders are the hub's
(`nyu-mll/glue`, `rajpurkar/squad`), settings those that the BiT paper trains with.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from bitlab.errors import BitlabError, check_choice

# What a model answers: one class, any number of classes, a number, or a piece of the text. The names on the right
# are transformers' for the loss; a span model's loss is its own.
KINDS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
    "span": None,
}
ACCURACY, ACCURACY_F1, CORRELATIONS = ("accuracy",), ("accuracy", "f1"), ("pearson", "spearman")
METRICS = {
    "single_label": ACCURACY,
    "multi_label": ("f1_micro", "f1_macro"),
    "regression": CORRELATIONS,
    "span": ("exact_match", "f1"),
}


@dataclass(frozen=True)
class Task:
    """One task: what goes in, what comes out, how it is scored and trained.

    Args:
        name: how it is called in commands and files; also its title and folder where those are not given.
        kind: "single_label", "multi_label", "regression" or "span".
        text_columns: one, or two for pairs of texts.
        label_names: the classes in the order of the logits (the hub's order); of the first two kinds only.
        metrics: the names of `bitlab.data.metrics`; the kind's own if empty. The task's score is their mean.
        epochs, max_length (tokens), batch_size, learning_rate: of a distillation stage.
        published_score: the full-precision BERT-base number of the BiT paper, as a fraction.
        teacher: hub id of a published BERT-base fine-tuned on the task.
        teacher_labels: the order of *its* logits where that is another one (MNLI).
        label_range: the smallest and the largest label of a regression, where there are such.
        stride, question_length: of a span task's windows, in tokens.
    Raises:
        BitlabError: for a kind that does not exist, and for labels that don't go with the kind.
    """

    name: str
    kind: str = "single_label"
    text_columns: tuple[str, ...] = ("sentence",)
    label_names: tuple[str, ...] | None = None
    title: str = ""
    folder: str = ""
    metrics: tuple[str, ...] = ()
    epochs: int = 10
    max_length: int = 128
    batch_size: int = 16
    learning_rate: float = 2e-4
    published_score: float | None = None
    teacher: str | None = None
    teacher_labels: tuple[str, ...] | None = None
    eval_splits: tuple[str, ...] = ("validation",)
    label_range: tuple[float, float] | None = None
    stride: int = 128
    question_length: int = 64

    def __post_init__(self):
        check_choice("kind of task", self.kind, KINDS)
        names = tuple(map(str, self.label_names or ()))
        fewest = {"single_label": 2, "multi_label": 1}.get(self.kind, 0)
        if names and not fewest:
            raise BitlabError(f"task {self.name!r} of kind {self.kind!r} has no classes: give no label_names")
        if len(set(names)) < max(fewest, len(names)):
            raise BitlabError(f"task {self.name!r} has too few different labels: give {fewest} label_names or more")
        if not 1 <= len(self.text_columns) <= 2:
            raise BitlabError(f"task {self.name!r} has {len(self.text_columns)} text columns: give one or two")
        filled = {
            "title": self.title or self.name,
            "folder": self.folder or self.name,
            "text_columns": tuple(self.text_columns),
            "label_names": names or None,
            "metrics": tuple(self.metrics) or METRICS[self.kind],
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    @property
    def has_classes(self) -> bool:
        """True where the label is a class or several, False where it is a number or a span."""
        return self.kind in ("single_label", "multi_label")

    @property
    def num_labels(self) -> int:
        """Width of the head: one per class, 1 for a regression, 2 (start and end of a token) for a span."""
        return len(self.label_names) if self.has_classes else {"regression": 1, "span": 2}[self.kind]

    @property
    def problem_type(self) -> str | None:
        """The name that transformers gives to the kind of loss."""
        return KINDS[self.kind]


def _glue(name: str, title: str, columns, labels, metrics, epochs, length, batch, rate, score, **more) -> Task:
    more = {"kind": "single_label" if labels else "regression", "folder": title} | more
    teacher = f"textattack/bert-base-uncased-{more['folder']}"
    facts = {"title": title, "metrics": metrics, "published_score": score, "teacher": teacher}
    sizes = {"epochs": epochs, "max_length": length, "batch_size": batch, "learning_rate": rate}
    return Task(name, text_columns=columns, label_names=labels, **facts, **sizes, **more)


PAIR = ("sentence1", "sentence2")
ENTAILS = ("entailment", "not_entailment")

_TASKS = (
    #     name, title, text columns, labels, metrics, epochs, length, batch, lr, published score
    _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",),
          50, 64, 16, 5e-4, 0.597),
    _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), ACCURACY, 10, 64, 8, 1e-4, 0.932),
    _glue("mrpc", "MRPC", PAIR, ("not_equivalent", "equivalent"), ACCURACY_F1, 20, 128, 8, 5e-4, 0.863),
    _glue("stsb", "STS-B", PAIR, None, CORRELATIONS, 20, 128, 8, 5e-4, 0.901, label_range=(0.0, 5.0)),
    _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ACCURACY_F1,
          6, 128, 32, 2e-4, 0.914),
    _glue("mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ACCURACY,
          6, 128, 16, 2e-4, 0.849, teacher_labels=("contradiction", "entailment", "neutral"),
          eval_splits=("validation_matched", "validation_mismatched")),
    _glue("qnli", "QNLI", ("question", "sentence"), ENTAILS, ACCURACY, 10, 128, 8, 2e-4, 0.921),
    _glue("rte", "RTE", PAIR, ENTAILS, ACCURACY, 20, 128, 8, 5e-4, 0.722),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
SQUAD = Task(
    "squad",
    "span",
    ("question", "context"),
    title="SQuAD v1.1",
    epochs=3,
    max_length=384,
    batch_size=16,
    learning_rate=3e-5,
    published_score=(0.826 + 0.897) / 2,
    teacher="csarron/bert-base-uncased-squad-v1",
)


def get_task(name: str | Task) -> Task:
    """The task of that name ("rte", also as the papers write it: "RTE", "SST-2"; "squad" for SQuAD v1.1).

    A task object is returned as it is. Raises BitlabError, with the known names, for anything else.
    """
    if isinstance(name, Task):
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
    if task.kind == "span":
        raise BitlabError(f"{task.name!r} is no GLUE task: known are {', '.join(TASKS)}.")
    return task
