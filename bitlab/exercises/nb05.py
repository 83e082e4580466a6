"""Exercises of notebook 05, binary BERT."""

from bitlab.exercises import exercise


@exercise("05.1", "The bits of a layer", difficulty=1, minutes=5)
class LayerBits:
    cases = [(768, 768), (768, 3072), (3072, 768), (128, 256)]

    def reference(inputs, outputs):
        return inputs * outputs + 32 * (outputs + inputs + 2)

    def wrong(inputs, outputs):  # without what binarization adds
        return inputs * outputs + 32 * outputs


@exercise("05.2", "Operations on paper", difficulty=2, minutes=8)
class ProductFlops:
    cases = [(128, 768, 768, 1, 1), (128, 768, 3072, 1, 4), (16, 128, 256, 1, 32), (128, 768, 768, 32, 32)]

    def reference(tokens, inputs, outputs, weight_bits, activation_bits):
        return 2 * tokens * inputs * outputs * min(1, weight_bits * activation_bits / 64)

    def wrong(tokens, inputs, outputs, weight_bits, activation_bits):  # float "costs" 16 times itself
        return 2 * tokens * inputs * outputs * weight_bits * activation_bits / 64


@exercise("05.3", "Which set?", difficulty=2, minutes=10)
class WhichSet:
    cases = [
        (name,)
        for name in (
            "bert.encoder.layer.3.attention.self.key",
            "bert.encoder.layer.0.attention.output.dense",
            "bert.encoder.layer.11.output.dense",
            "bert.encoder.layer.2.intermediate.dense",
            "bert.encoder.layer.5.output.LayerNorm",
            "bert.embeddings.position_embeddings",
            "bert.pooler.dense",
            "classifier",
        )
    ]

    def reference(name):
        if name.endswith("LayerNorm") or "embeddings" in name or name.startswith("classifier"):
            return "float"
        after_relu = name.endswith("output.dense") and not name.endswith("attention.output.dense")
        return "unsigned" if after_relu else "signed"

    def wrong(name):  # attention's output looks like the feed-forward's
        if name.endswith("LayerNorm") or "embeddings" in name or name.startswith("classifier"):
            return "float"
        return "unsigned" if name.endswith("output.dense") else "signed"
