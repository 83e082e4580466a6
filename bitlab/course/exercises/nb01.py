"""Exercises of notebook 01, why one bit."""

from bitlab.course.exercises import exercise


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


@exercise("01.3", "The papers' price of a linear layer", difficulty=2, minutes=6)
class Price:
    cases = [
        (768, 768, 128, 1, 1),
        (768, 768, 128, 32, 32),
        (768, 3072, 128, 1, 4),
        (384, 1536, 64, 1, 32),
        (128, 256, 1, 8, 8),
    ]

    def reference(inputs, outputs, tokens, weight_bits, activation_bits):
        return 2 * inputs * outputs * tokens * min(1.0, weight_bits * activation_bits / 64)

    def wrong(inputs, outputs, tokens, weight_bits, activation_bits):  # a float product costs 1, not 32 * 32 / 64
        return 2 * inputs * outputs * tokens * weight_bits * activation_bits / 64
