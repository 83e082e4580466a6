"""The model card of a stage: README.md in its folder, which the hub shows and a reader of the folder finds first."""

from transformers import PreTrainedModel

from bitlab.config import bit_config
from bitlab.data.tasks import Task

CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags: [bitlab, {precision}]
---
# {title}, {precision}

A {kind} of {bits}, made by bitlab.

| what | |
|---|---|
{facts}

## Use

```python
import bitlab{why}
from bitlab.inference import predict

predict("{folder}", {example})
```

`transformers` loads this folder too, after `import bitlab`: `{auto}.from_pretrained("{folder}")`. `bitlab pack {folder}
{folder}-packed` writes the same model with one bit a weight, and both lines above take that folder as well.
"""


def card(model: PreTrainedModel, task: Task, folder: str, record: dict, **facts: str | None) -> str:
    """The card's text.

    Args:
        folder: the stage's name, as the example calls it.
        record: of the stage: precision, score, metrics, steps.
        facts: more rows of the table, for instance schedule="W32A32 -> W1A2 -> W1A1", teacher="W1A2"; None: no row.
    """
    precision = record["precision"]
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in record["metrics"].items())
    rows = {
        "task": task.title,
        "precision": precision,
        **facts,
        "score on dev": f"{record['score']:.3f} ({metrics})",
        "training steps": f"{record['steps']:,}",
    }
    span = task.kind == "span"
    bits, told = bit_config(model), "full precision"
    if bits:
        told = f"{bits.weight_bits}-bit weights and {bits.activation_bits}-bit activations"
    texts = {1: '["a text"]', 2: '[("a text", "and its pair")]'}[len(task.text_columns)]
    return CARD.format(
        pipeline="question-answering" if span else "text-classification",
        title=task.title,
        precision=precision,
        kind=type(model).__name__,
        bits=told,
        facts="\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None),
        why="  # so that transformers knows its layers" if bits else "",
        folder=folder,
        example='["a question"], context="the paragraph"' if span else texts,
        auto="AutoModelForQuestionAnswering" if span else "AutoModelForSequenceClassification",
    )
