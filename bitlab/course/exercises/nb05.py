"""Exercises of notebook 05, binary BERT."""

from bitlab.course.exercises.registry import exercise


@exercise("05.1", "The bits of a layer", difficulty=1, minutes=5)
class LayerBits:
    cases = [(768, 768), (768, 3072), (3072, 768), (128, 256)]

    def reference(inputs, outputs):
        return inputs * outputs + 32 * (outputs + inputs + 2)

    def wrong(inputs, outputs):  # without what binarization adds
        return inputs * outputs + 32 * outputs


@exercise("05.2", "When attention begins to show", difficulty=2, minutes=8)
class AttentionShare:
    cases = [(128, 768), (512, 768), (4608, 768), (8, 128)]

    def reference(length, width):
        return length / (length + 6 * width)

    def wrong(length, width):  # one of the two products
        return length / (length + 12 * width)


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
