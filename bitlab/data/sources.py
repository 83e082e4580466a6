"""Where data come from: the sample generator, the hub, or a folder; which of them "auto" means; and what a task's
data must look like, whoever delivers them."""

import functools
import logging
import os
import threading
import urllib.request
from pathlib import Path

from datasets import ClassLabel, DatasetDict, Features, List, Value, load_dataset

from bitlab.data.tasks import Task
from bitlab.errors import BitlabError
from bitlab.files import one_line

logger = logging.getLogger("bitlab")

DATA_VARIABLE = "BITLAB_DATA"
HUB_CHECK_SECONDS = 3.0
_YES = {"1", "true", "yes", "on"}


def hub_offline() -> bool:
    """True when the user's environment forbids the hub (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE)."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in _YES for name in names)


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers, found out once per process and in 3 seconds at most."""
    return not hub_offline() and _hub_answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def hub_state() -> str:
    """What the hub does, to be told: "answers", "does not answer" or "is switched off (offline)"."""
    return "answers" if hub_reachable() else "is switched off (offline)" if hub_offline() else "does not answer"


@functools.cache
def _hub_answers(endpoint: str) -> bool:
    answers: list[bool] = []

    def ask():
        try:
            request = urllib.request.Request(f"{endpoint}/api/datasets/nyu-mll/glue", method="HEAD")
            with urllib.request.urlopen(request, timeout=HUB_CHECK_SECONDS) as reply:
                answers.append(reply.status < 400)
        except (OSError, ValueError):
            pass

    # A thread, because a name look-up that hangs is not bound by the socket's time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_CHECK_SECONDS)
    return bool(answers and answers[0])


def resolve_source(source: str | os.PathLike = "auto") -> tuple[str, str]:
    """What `source` means here and now: ("sample" | "hub" | an existing folder, one line that says why).

    "auto" is the folder named by BITLAB_DATA if that is set, else the hub if it answers within 3 seconds
    (HF_HUB_OFFLINE is respected), else the sample generator. Raises BitlabError for a folder that is not there.
    """
    source = os.fspath(source)
    if source in ("sample", "hub"):
        return source, f"data: {source}, as asked"
    if source != "auto":
        return _folder(source, "the data source"), f"data: folder {source}, as asked"
    named = os.environ.get(DATA_VARIABLE)
    if named:
        return _folder(named, DATA_VARIABLE), f"data: folder {named}, because {DATA_VARIABLE} names it"
    found = "hub" if hub_reachable() else "sample"
    return found, f"data: {found}, because {DATA_VARIABLE} is not set and the hub {hub_state()}"


def load_hub(
    hub_id: str,
    name: str | None = None,
    advice: str = "check the network, or use the data source 'sample' or a folder",
) -> DatasetDict:
    """All splits of a data set on the hub, or of a folder in its layout.

    Raises:
        BitlabError: one line for whatever keeps it from loading.
    """
    what = hub_id if name is None else f"{hub_id} {name!r}"
    where = f"folder {what!r}" if os.path.isdir(hub_id) else f"{what} from the hub"
    with one_line(f"could not load {where}", advice, Exception):  # the hub's client raises a dozen kinds
        return load_dataset(hub_id, name)


def _folder(name: str, what: str) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    problem = "is a file, not a folder" if folder.exists() else "does not exist"
    raise BitlabError(f"{what} {name!r} {problem}: give 'auto', 'sample', 'hub' or a folder of original files.")


def features(task: Task) -> Features:
    """The hub's feature types: what every source of a task must deliver.

    Text columns, `label` and `idx`; the label is a ClassLabel in the hub's order, a list of such for several at once,
    a float32 for a regression. For a span task SQuAD's columns, with `answers` in place of a label.
    """
    if task.kind == "span":
        answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        return Features(
            {name: Value("string") for name in ("id", "title", "context", "question")} | {"answers": answers}
        )
    label = ClassLabel(names=list(task.label_names)) if task.has_classes else Value("float32")
    label = List(label) if task.kind == "multi_label" else label
    return Features({column: Value("string") for column in task.text_columns} | {"label": label, "idx": Value("int32")})
