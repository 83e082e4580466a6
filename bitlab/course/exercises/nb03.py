"""Exercises of notebook 03, elastic activation."""

import torch

from bitlab.course.exercises.registry import exercise

X = torch.tensor([[-1.5, 0.2, 0.9], [0.4, 1.1, 3.0], [2.0, -0.3, 0.6]])
G = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.3, -0.7], [-0.4, 0.8, 1.2]])


@exercise("03.1", "The best scale of a sign", difficulty=1, minutes=4)
class BestScale:
    cases = [(X, torch.zeros(3)), (X, torch.tensor([1.0, 0.5, -0.5]))]

    def reference(x, beta):
        return (x - beta).abs().mean()

    def wrong(x, beta):  # the scale of values that nobody binarizes
        return x.abs().mean()


@exercise("03.2", "Gradient of beta", difficulty=2, minutes=8)
class BetaGradient:
    cases = [(X, 1.0, torch.zeros(3), G), (X, 0.8, torch.tensor([1.0, 0.5, 2.0]), G)]

    def reference(x, alpha, beta, g):
        return -(g * ((x - beta).abs() <= alpha)).sum(0)

    def wrong(x, alpha, beta, g):  # the window lies around beta, not around zero
        return -(g * (x.abs() <= alpha)).sum(0)


@exercise("03.3", "A gentler lie", difficulty=3, minutes=15)
class Gentle:
    cases = [(X, 1.0, G), (X, 0.5, G), (X, 4.0, G)]

    def reference(x, alpha, g):
        return alpha * ((x >= 0) * 2.0 - 1), g * (2 - 2 * (x / alpha).abs()).clamp(min=0)

    def wrong(x, alpha, g):  # no fence: beyond it, the gradient turns around
        return alpha * ((x >= 0) * 2.0 - 1), g * (2 - 2 * (x / alpha).abs())
