"""What DistillationTrainer refuses before it trains: settings that would do nothing, a teacher that is its own student,
a checkpoint to go on from that lacks a part. Trainer itself takes them all, and trains something else in silence. And
afterwards: what a training that diverged leaves."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn
from transformers import Trainer

from bitlab.errors import BitlabError

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")  # values of `args.optim` that say what is done here
RELEASED_BETAS, RELEASED_EPSILON = (0.9, 0.999), 1e-6


def check_settings(trainer: Trainer, taught: bool, released: bool) -> None:
    """Refuse settings of Trainer that would do nothing.

    Args:
        trainer: with its arguments set.
        taught: whether it has teachers.
        released: whether it is to use the released program's optimizer.

    Raises:
        BitlabError: naming the setting, and why it has no effect.
    """
    args, own = trainer.args, trainer.optimizer is not None
    learns = "a student learns from its teacher, not from labels"
    adamw = "DistillationTrainer has an AdamW of its own: leave it alone, or give optimizers=(yours, None)"
    adam = f"the released optimizer has betas of .9 and .999, and an epsilon of {RELEASED_EPSILON}"
    betas = (args.adam_beta1, args.adam_beta2)
    of_parts = args.world_size > 1 and not args.average_tokens_across_devices
    idle = {
        "compute_loss_func": (taught and trainer.compute_loss_func, learns),
        "label_smoothing_factor": (taught and args.label_smoothing_factor, learns),
        "average_tokens_across_devices=False": (taught and of_parts, "every real token of all processes counts alike"),
        "parallelism_config": (taught and args.parallelism_config, "the loss needs whole sentences and whole models"),
        f"optim={args.optim.value!r}": (not own and args.optim not in OPTIMIZERS, adamw),
        "optim_args": (not own and args.optim_args, adamw),
        "optim_target_modules": (not own and args.optim_target_modules, adamw),
        "optimizer_cls_and_kwargs": (trainer.optimizer_cls_and_kwargs, adamw),
        "released_optimizer": (released and own, "optimizers holds one already"),
        "adam_beta1 or adam_beta2": (released and betas != RELEASED_BETAS, adam),
        "adam_epsilon": (released and args.adam_epsilon not in (1e-8, RELEASED_EPSILON), adam),  # 1e-8: not set
    }
    for setting, (is_set, why) in idle.items():
        if is_set:
            raise BitlabError(f"{setting} would do nothing: {why}")
    if args.n_gpu > 1:
        raise BitlabError(
            f"one process sees {args.n_gpu} GPUs, and would give parts of a batch to copies of the model: "
            f"start it with torchrun, one process a GPU, or set CUDA_VISIBLE_DEVICES to one of them"
        )


def check_apart(student: nn.Module, teachers: Iterable[nn.Module]) -> None:
    """Refuse a teacher that shares parameters with the student: it would learn along, and the loss be 0.

    `binarize` works in place, so that `binarize(teacher)` is the teacher.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()} - {0}  # 0: not in memory
    for teacher in teachers:
        if any(parameter.untyped_storage().data_ptr() in own for parameter in teacher.parameters()):
            raise BitlabError(
                "student and teacher share parameters, so that the teacher would learn along: copy it first, "
                "student = binarize(copy.deepcopy(teacher))"
            )


def check_complete(checkpoint: Path, process: int | None) -> None:
    """Refuse a checkpoint from which training would go on with other numbers.

    Args:
        checkpoint: its folder.
        process: the number of this process, None if it is the only one.
    """
    random_state = "rng_state.pth" if process is None else f"rng_state_{process}.pth"
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt", random_state):
        if not (checkpoint / name).exists():
            raise BitlabError(
                f"checkpoint {checkpoint} has no {name}, so that training would not go on as it was: "
                f"take another checkpoint, or start anew from the model in it"
            )


def diverged(what: str, advice: str = "take lower learning rates") -> BitlabError:
    """The error of a training whose numbers have grown out of all bounds; `what` tells where that was seen."""
    return BitlabError(f"training has diverged, {what}: {advice}")


def check_finite(model: nn.Module, *advice: str) -> None:
    """Refuse a model that a diverged training left.

    Raises:
        BitlabError: naming a parameter that holds NaN or infinity.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise diverged(f"{name} holds NaN or infinity", *advice)
