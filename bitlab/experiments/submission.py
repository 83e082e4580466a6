"""Predictions in the format of the GLUE leaderboard: one file a task, "index" and "prediction", tab-separated.

Source: the instructions of gluebenchmark.com. The archive to submit holds AX.tsv and WNLI.tsv too: copy the sample
submission's for these.
"""

import numpy as np

from bitlab.data.glue import layout
from bitlab.data.metrics import predicted
from bitlab.data.tasks import Task


def file_name(task: Task, split: str) -> str:
    """The leaderboard's name of a split's file: "RTE.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"."""
    if task.name == "mnli":
        return "MNLI-mm.tsv" if split.endswith("mismatched") else "MNLI-m.tsv"
    return f"{task.folder}.tsv"


def content(task: Task, logits: np.ndarray) -> str:
    """The file's text: a header, and a line for each example in the order of the data.

    Args:
        logits: (N, classes), or (N, 1) for STS-B.

    The prediction is written as the task's original files write labels: a word for MNLI, QNLI and RTE, 0 or 1 for
    the other classes, a number from 0 to 5 with three decimals for STS-B.
    """
    values = predicted(task, logits)
    if task.kind == "regression":
        labels = [f"{value:.3f}" for value in (np.clip(values, *task.label_range) if task.label_range else values)]
    elif task.kind == "multi_label":
        labels = [",".join(name for name, there in zip(task.label_names, row, strict=True) if there) for row in values]
    else:
        labels = [task.label_names[i] if layout(task).words else str(i) for i in values]
    return "".join(["index\tprediction\n", *(f"{i}\t{label}\n" for i, label in enumerate(labels))])
