"""Experiments: what can be chosen of one (`experiment`), its data (`prepared`), a stage's training, the whole run."""

from bitlab.terminal.startup import lazy

_MODULES = {
    "Experiment": "bitlab.experiments.experiment",
    "GeneralDistillation": "bitlab.experiments.experiment",
    "distil": "bitlab.experiments.general",
    "evaluate": "bitlab.experiments.stage",
    "run": "bitlab.experiments.running",
}

__all__ = list(_MODULES)
__getattr__ = lazy(__name__, _MODULES)
