"""Exercises of notebook 08, packed inference."""

from bitlab.course.exercises.registry import exercise


@exercise("08.1", "A dot product of n bits", difficulty=1, minutes=4)
class XorDot:
    cases = [(0b1011, 0b1110, 4), (0, 0, 7), (0b101, 0b010, 3), (0x0F0F, 0x00FF, 16), (0b1, 0b0, 100)]

    def reference(a, w, n):
        return n - 2 * (a ^ w).bit_count()

    def wrong(a, w, n):  # counts the word's 32 places, not the n that hold something
        return 32 - 2 * (a ^ w).bit_count()


@exercise("08.2", "An integer for three floats", difficulty=2, minutes=8)
class Threshold:
    cases = [
        (0.5, 0.1, 0.3, 8),
        (0.031, -0.4, 0.2, 64),
        (0.2, 0.0, 0.0, 4),
        (0.2, 0.0, 0.0, 5),
        (0.1, 5.0, 0.0, 6),
        (0.1, -5.0, 0.0, 6),
    ]

    def reference(scale, bias, beta, n):
        return next((dot for dot in range(-n, n + 1, 2) if bias + scale * dot >= beta), n + 2)

    def wrong(scale, bias, beta, n):  # the real number where the sign turns, rounded: often no dot product of n signs
        return round((beta - bias) / scale)


@exercise("08.3", "Bytes of a packed layer", difficulty=2, minutes=6)
class PackedBytes:
    cases = [(768, 768), (768, 3072), (100, 3), (7, 9)]

    def reference(inputs, outputs):
        return outputs * -(-inputs // 8) + 4 * (outputs + inputs + 1 + 1)

    def wrong(inputs, outputs):  # a row ends with a whole byte
        return inputs * outputs / 8 + 4 * (outputs + inputs + 1 + 1)
