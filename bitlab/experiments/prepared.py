"""A task's data as tokens, ready for training and evaluation: one interface for the GLUE tasks and for SQuAD."""

from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from bitlab.data.augment import load_augmented
from bitlab.data.glue import encode, load_glue
from bitlab.data.metrics import check_predictions, commonest, glue_metrics, normalize_answer, squad_metrics
from bitlab.data.squad import Windows, WindowSizes, best_answers, best_texts, encode_windows, load_squad, right_sided
from bitlab.data.tasks import Task
from bitlab.errors import BitlabError
from bitlab.experiments import submission

PREDICTIONS, N_BEST_PREDICTIONS = "predictions.json", "nbest_predictions.json"


@dataclass
class Prepared:
    """A task's data as tokens, ready for training and evaluation: of a GLUE task here, of SQuAD in PreparedSpans."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    train: Dataset | None
    evaluations: dict[str, Dataset]
    fixed_length: bool = False
    augmented: Dataset | None = None
    augmentation: dict | None = None  # what is known of `augmented`, for the result file
    tests: dict[str, Dataset] = field(default_factory=dict)  # as they were read: most runs never look at them

    def augment(self, path: str) -> None:
        """Let distillation train on a table of `bitlab augment` (see `load_augmented`) in place of `train`."""
        rows, self.augmentation = load_augmented(self.task, path)
        self.augmented = encode(rows, self.task, self.tokenizer)

    def sizes(self) -> dict[str, int]:
        """Number of examples in each split."""
        augmented = {} if self.augmented is None else {"augmented": len(self.augmented)}
        return {"train": len(self.train)} | augmented | {name: len(rows) for name, rows in self.evaluations.items()}

    @property
    def scored(self) -> int:
        """Number of examples in all dev splits."""
        return sum(map(len, self.evaluations.values()))

    @property
    def max_length(self) -> int:
        """Tokens of the longest example possible."""
        return min(self.task.max_length, self.tokenizer.model_max_length)

    def options(self) -> dict[str, int]:
        """How the data were prepared, for the record of an experiment: what the task's name does not tell."""
        return {}

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Pad a batch to its longest example, or all to the longest possible if `fixed_length`."""
        options = {"padding": "max_length", "max_length": self.max_length} if self.fixed_length else {}
        return DataCollatorWithPadding(self.tokenizer, **options)(rows)

    def metrics(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """The task's metrics from logits by split; a second dev set's (MNLI mismatched) are marked by its name."""
        found = {}
        for number, (name, logits) in enumerate(predictions.items()):
            labels = np.array(self.evaluations[name]["labels"])
            mark = "" if number == 0 else "_" + name.removeprefix("validation_")
            found |= {key + mark: value for key, value in glue_metrics(self.task, logits, labels).items()}
        return found

    def score(self, metrics: dict[str, float]) -> float:
        """The task's number: the mean of its metrics (SQuAD's too: of exact match and F1), as a fraction."""
        return float(np.mean(list(metrics.values())))

    def files(self, predictions: dict[str, np.ndarray]) -> dict[str, dict | str]:
        """Predictions in the task's official formats, by file name ("predictions/dev/RTE.tsv"): a JSON object or a
        text; what is written beside a stage's model."""
        return {self._file_name(split): submission.content(self.task, logits) for split, logits in predictions.items()}

    def file_names(self) -> list[str]:
        """What `files` may call them."""
        return [self._file_name(split) for split in (*self.evaluations, *self.tests)]

    def _file_name(self, split: str) -> str:
        kind = "dev" if split.startswith("validation") else "test"
        return f"predictions/{kind}/{submission.file_name(self.task, split)}"

    def encoded_tests(self, limit: float) -> dict[str, Dataset]:
        """The test splits as tokens without labels, made when asked for; not those of more than `limit` examples."""
        small = {name: rows for name, rows in self.tests.items() if len(rows) <= limit}
        return {n: encode(rows, self.task, self.tokenizer).remove_columns("labels") for n, rows in small.items()}

    def trivial_score(self) -> float:
        """What the most frequent class (or a constant) scores on dev."""
        constant = {name: commonest(self.task, rows["labels"][:]) for name, rows in self.evaluations.items()}
        return self.score(self.metrics(constant))


@dataclass(kw_only=True)
class PreparedSpans(Prepared):
    """SQuAD as windows of tokens. `train` and `evaluations` hold windows, `questions` the dev rows they came from."""

    questions: Dataset
    windows: Windows
    window_sizes: WindowSizes
    train_questions: int

    @property
    def scored(self) -> int:
        return len(self.questions)

    @property
    def max_length(self) -> int:
        return self.window_sizes.max_length

    def options(self) -> dict[str, int]:
        """Window sizes in tokens and numbers of questions (`sizes` counts windows)."""
        counts = {"train": self.train_questions, "validation": len(self.questions)}
        return asdict(self.window_sizes) | {"questions": counts}

    def answers(self, predictions: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, list[dict]]:
        """The n best answers by question id, from (start, end) logits of the only dev split."""
        (logits,) = predictions.values()
        start, end = logits[:2]
        check_predictions(self.task, start, end)
        return best_answers(self.questions, self.windows, start, end)

    def metrics(self, predictions: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Exact match and F1 as fractions."""
        return squad_metrics(best_texts(self.answers(predictions)), self.questions)

    def files(self, predictions: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict]:
        """predictions.json, {id: text}, as the official scorer reads it, and the n best answers to each question."""
        answers = self.answers(predictions)
        return {PREDICTIONS: best_texts(answers), N_BEST_PREDICTIONS: answers}

    def trivial_score(self) -> float:
        """What dev's most frequent answer scores, given to every question."""
        (commonest, _), *_ = Counter(normalize_answer(a["text"][0]) for a in self.questions["answers"]).most_common(1)
        return self.score(squad_metrics(dict.fromkeys(self.questions["id"], commonest), self.questions))


def prepare(
    task: Task,
    source: str | DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    train_examples: int | None = None,
    fixed_length: bool = False,
    **window_sizes: int | None,
) -> Prepared:
    """Load and tokenize a task.

    Args:
        source: "sample", "hub", a folder, or the splits.
        train_examples: only the first so many training examples or questions; 0: dev alone is to be scored.
        window_sizes: for SQuAD, see `WindowSizes.fitting`.
    Raises:
        BitlabError: where a split that is needed is absent, and for window sizes that do not fit.
    """
    if task.kind == "span":
        sizes = WindowSizes.fitting(tokenizer, **window_sizes)
        tokenizer = right_sided(tokenizer)
        splits = load_splits(task, source)
        train, (dev,) = _needed(task, splits, train_examples)
        windows = encode_windows(splits[dev], tokenizer, sizes)
        tokens = train and encode_windows(train, tokenizer, sizes).tokens
        of_spans = {"questions": splits[dev], "windows": windows, "window_sizes": sizes}
        of_spans["train_questions"] = len(train or ())
        return PreparedSpans(task, tokenizer, tokens, {dev: windows.tokens}, fixed_length, **of_spans)
    for name, value in window_sizes.items():
        if value is not None:
            raise BitlabError(f"{name} is for SQuAD: {task.title} has no windows")
    splits = load_splits(task, source)
    train, present = _needed(task, splits, train_examples)
    evaluations = {name: encode(splits[name], task, tokenizer) for name in present}
    tests = {name: rows for name, rows in splits.items() if name.startswith("test")}
    return Prepared(task, tokenizer, train and encode(train, task, tokenizer), evaluations, fixed_length, tests=tests)


def load_splits(task: Task, source: str | DatasetDict) -> DatasetDict:
    """All of a task's splits, from "sample", "hub", "auto", a folder, or as they are given."""
    if task.kind != "span":
        return load_glue(task, source)
    return source if isinstance(source, DatasetDict) else load_squad(source)


def _needed(task: Task, splits: DatasetDict, train_examples: int | None) -> tuple[Dataset | None, list[str]]:
    """The training split, or its first so many rows, and the names of the dev splits."""
    present = [name for name in task.eval_splits if name in splits]
    wanted = [] if train_examples == 0 else ["train"]
    for name in (*wanted, *(present or task.eval_splits[:1])):
        if name not in splits:
            raise BitlabError(
                f"{task.title} has no {name} split in this data, which is needed here: give its file, too"
            )
    train = splits["train"] if wanted else None
    return train and train.select(range(min(train_examples or len(train), len(train)))), present
