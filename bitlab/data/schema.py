"""The hub's feature types: what every source of a task must deliver."""

from datasets import ClassLabel, Features, List, Value

from bitlab.data.tasks import Task

SQUAD_FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)


def glue_features(task: Task) -> Features:
    """Text columns, `label` (ClassLabel in the hub's order, float32 for a regression) and `idx`."""
    label = Value("float32") if task.is_regression else ClassLabel(names=list(task.label_names))
    return Features({column: Value("string") for column in task.text_columns} | {"label": label, "idx": Value("int32")})
