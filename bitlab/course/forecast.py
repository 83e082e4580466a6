"""What an experiment will cost on this machine, said before it starts."""

import time

import torch

from bitlab.experiments import Experiment
from bitlab.experiments.prepared import Prepared
from bitlab.models import load_model

EXAMPLES = 16  # in the batch that is timed
DISTILLING = 3.0  # a step with a teacher, in plain steps: it reads too, and binarizing takes time
OPTIMIZING = 1.2  # a plain step with its optimizer, in forward and backward passes


def forecast(experiment: Experiment, data: Prepared, device: torch.device) -> float:
    """Print a line for each stage: its steps, and roughly how long they will take.

    Forward and backward of one batch are timed on the starting model, so a busy machine gives a longer forecast.

    Args:
        data: the experiment's tokens.

    Returns:
        Seconds of all stages together, evaluation not counted.
    """
    model = load_model(experiment.model, experiment.task).to(device).train()
    batch = {k: v.to(device) for k, v in data.collate([data.train[i] for i in range(EXAMPLES)]).items()}
    seconds = min(_pass(model, batch) for _ in range(4)) / EXAMPLES
    print(f"{len(data.train):,} examples to train on; roughly, on this machine as busy as it is now:")
    total = 0.0
    for number, precision in enumerate(experiment.precisions):
        settings = experiment.settings(precision)
        steps = settings.steps(len(data.train))
        took = (DISTILLING if number else OPTIMIZING) * seconds * settings.batch_size * steps
        print(f"{precision:>7}: {steps:,} steps of {settings.batch_size}, {took / 60:.1f} minutes")
        total += took
    return total


def _pass(model, batch) -> float:
    started = time.perf_counter()
    model(**batch).loss.backward()
    return time.perf_counter() - started
