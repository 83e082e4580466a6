"""The head that answers a task: its class, what a configuration says of it, and in which order its logits come."""

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from bitlab.data.tasks import KINDS, Task, get_task
from bitlab.errors import BitlabError

HEADS = {  # by the kind of task; None: a bare encoder
    None: AutoModel,
    "single_label": AutoModelForSequenceClassification,
    "multi_label": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "span": AutoModelForQuestionAnswering,
}


def head_settings(task: Task | None) -> dict:
    """The config entries that describe a task's head."""
    if task is None or task.kind == "span":
        return {}
    names = task.label_names or ("LABEL_0",)
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {label: i for i, label in enumerate(names)},
        "problem_type": task.problem_type,
    }


def needs_fresh_head(config: PretrainedConfig, task: Task | None, where: str) -> bool:
    """False when the checkpoint's own head serves the task, True when it has none, an error when it can't serve."""
    if task is None:
        return False
    architecture = (config.architectures or [""])[0]
    suffixes = {kind: head.__name__.removeprefix("AutoModel") for kind, head in HEADS.items() if kind}
    wanted = suffixes[task.kind]
    if not architecture.endswith(wanted):
        if architecture.endswith(tuple(suffixes.values())):
            raise BitlabError(f"model {where!r} is a {architecture}: {task.name} needs one {wanted} or an encoder.")
        return True
    if config.num_labels != task.num_labels:
        raise BitlabError(f"model {where!r} has {config.num_labels} labels, {task.name} has {task.num_labels}.")
    return False


def teacher_label_order(config: PretrainedConfig, task: str | Task, name: str = "") -> list[int]:
    """`order[i]`: which of the model's logits is the task's label `i` of the hub's order.

    The model's `id2label` names decide. Where it has none ("LABEL_0", "0"), the published order of the textattack
    teachers is taken for them (MNLI: contradiction, entailment, neutral), told by their id or folder name, and the
    hub's order for others; the check of a teacher's dev score catches a wrong guess.
    Raises BitlabError when the model's labels have names that are not the task's.
    """
    task = get_task(task)
    if task.kind == "regression":
        return [0]
    wanted = [_plain(label) for label in task.label_names]
    found = [_plain(config.id2label[i]) for i in range(config.num_labels)]
    if all(label.removeprefix("label_").isdigit() for label in found):
        published = task.teacher and _plain(name).endswith(_plain(task.teacher.split("/")[1]))
        found = [_plain(label) for label in (published and task.teacher_labels) or task.label_names]
    if sorted(found) != sorted(wanted):
        raise BitlabError(f"model {name!r} has the labels {', '.join(found)}; {task.name} has {', '.join(wanted)}.")
    return [found.index(label) for label in wanted]


def _plain(label) -> str:
    return str(label).lower().replace("-", "_").replace(" ", "_")


def reorder_labels(model: PreTrainedModel, task: Task, order: list[int]) -> None:
    """Permute the classifier's rows, so that the model's own logits follow the hub's order from here on."""
    if order != sorted(order):
        head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(order)][-1]
        with torch.no_grad():
            head.weight.copy_(head.weight[order])
            if head.bias is not None:
                head.bias.copy_(head.bias[order])
    for key, value in head_settings(task).items():
        setattr(model.config, key, value)


def task_of(model: PreTrainedModel, text_columns: tuple[str, ...] = ("text",)) -> Task:
    """The task that a model was trained for, as far as its configuration tells it.

    Raises:
        BitlabError: for a model that answers nothing.
    """
    name, kind, config = "own", type(model).__name__, model.config
    if kind.endswith("ForQuestionAnswering"):
        return Task(name, "span", ("question", "context"))
    if not kind.endswith("ForSequenceClassification"):
        raise BitlabError(f"a {kind} answers nothing: give a trained classifier or question answerer")
    if config.problem_type == "regression" or config.num_labels == 1:
        return Task(name, "regression", text_columns)
    kinds = {problem: kind for kind, problem in KINDS.items()}
    labels = tuple(config.id2label[i] for i in range(config.num_labels))
    return Task(name, kinds.get(config.problem_type, "single_label"), text_columns, labels)
