"""Exercises of notebook 02, two-set binarization."""

import torch

from bitlab.course.exercises.registry import exercise


def _never_negative() -> list[tuple[torch.Tensor]]:
    """Odd numbers of distinct entries, so that there is one median."""
    generator = torch.Generator().manual_seed(2)
    probabilities = torch.randn(3, 7, generator=generator).softmax(dim=-1)
    return [(torch.tensor([0.1, 0.7, 0.2]),), (probabilities,), (torch.rand(101, generator=generator),)]


@exercise("02.1", "The most talkative bits", difficulty=1, minutes=6)
class MostInformative:
    cases = _never_negative

    def reference(x):
        return 2 * x.median()

    def wrong(x):  # the threshold, not the scale
        return x.median()


def _heads() -> list[tuple[torch.Tensor]]:
    """Heads of different sharpness."""
    generator = torch.Generator().manual_seed(3)
    sharpness = torch.tensor([0.3, 1.0, 4.0])[None, :, None, None]
    return [((sharpness * torch.randn(2, 3, n, n, generator=generator)).softmax(dim=-1),) for n in (5, 8)]


def _best(x: torch.Tensor) -> torch.Tensor:
    """The mean of the k largest entries, for the best k."""
    largest = x.flatten().double().sort(descending=True).values
    total, count = largest.cumsum(0), torch.arange(1, x.numel() + 1)
    k = (total.square() / count).argmax()
    return total[k] / count[k]


@exercise("02.2", "A scale for each head", difficulty=2, minutes=8)
class ScalePerHead:
    cases = _heads

    def reference(probs):
        return torch.stack([_best(head) for head in probs.unbind(dim=1)])

    def wrong(probs):  # one scale for all of them
        return _best(probs).expand(probs.shape[1])


@exercise("02.3", "Two free levels", difficulty=3, minutes=12)
class FreeLevels:
    cases = [
        (torch.tensor([0.0, 1.0, 2.0, 9.0]), 1.5),
        (torch.tensor([-3.0, -1.0, 1.0, 5.0]), -1.0),
        (torch.arange(12.0).reshape(3, 4), 4.0),
    ]

    def reference(x, threshold):
        above = x > threshold
        return x[~above].mean(), x[above].mean()

    def wrong(x, threshold):  # the set {0, h}: the lower side is not zero here
        return 0.0, x[x > threshold].mean()
