"""Experiments: what can be chosen of one (`experiment`), its data (`prepared`), a stage's `training`, the whole run."""

from bitlab.experiments.experiment import Experiment
from bitlab.experiments.running import run
from bitlab.experiments.stage import evaluate

__all__ = ["Experiment", "evaluate", "run"]
