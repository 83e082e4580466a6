"""Exercises of notebook 01, why one bit."""

import torch

from bitlab.course.exercises.registry import exercise


@exercise("01.1", "Bytes of a layer", difficulty=1, minutes=3)
class Bytes:
    cases = [(768, 768, 32), (768, 768, 1), (768, 3072, 1), (100, 3, 1)]

    def reference(inputs, outputs, weight_bits):
        return inputs * outputs * weight_bits / 8 + 4 * outputs

    def wrong(inputs, outputs, weight_bits):  # the biases are floats, whatever the weights are
        return (inputs * outputs + outputs) * weight_bits / 8


@exercise("01.2", "The other product of bits", difficulty=2, minutes=8)
class SelectAndCount:
    cases = [(0b0110, 0b0011), (0b1111, 0b1010), (0, 0b1011), (0b1000_0001, 0b1000_0000), (0b1011, 0b1011)]

    def reference(p, v):
        return 2 * (p & v).bit_count() - p.bit_count()

    def wrong(p, v):  # forgets that a 0 in v stands for -1
        return (p & v).bit_count()


def _layers() -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, 8, 5), (1, 16, 2), (4, 6, 6))
    return [
        (torch.randn(n, k, generator=generator), torch.randn(m, k, generator=generator) + 0.2, 0.5 * n)
        for n, k, m in shapes
    ]


@exercise("01.3", "A scale for each output", difficulty=2, minutes=8)
class RowScales:
    cases = _layers

    def reference(x, weight, a):
        signs = (weight >= weight.mean()) * 2.0 - 1
        return ((x >= 0) * 2.0 - 1) @ signs.T * (a * weight.abs().mean(dim=1))

    def wrong(x, weight, a):  # one scale for all rows, the layer that the notebook builds
        signs = (weight >= weight.mean()) * 2.0 - 1
        return ((x >= 0) * 2.0 - 1) @ signs.T * (a * weight.abs().mean())


@exercise("01.4", "Your layer without floats", difficulty=3, minutes=12)
class BitLinear:
    cases = [
        (0b0110, [0b0011, 0b1111, 0b0110], 4, 0.5, [0.0, 1.0, -1.0]),
        (0b1011_0010, [0b1111_0000, 0b0100_1101], 8, 0.25, [0.5, 0.5]),
        (0, [0], 3, 2.0, [0.0]),
    ]

    def reference(x, rows, n, scale, bias):
        return [(n - 2 * (x ^ row).bit_count()) * scale + b for row, b in zip(rows, bias)]

    def wrong(x, rows, n, scale, bias):  # the scale belongs to the product alone
        return [(n - 2 * (x ^ row).bit_count() + b) * scale for row, b in zip(rows, bias)]
