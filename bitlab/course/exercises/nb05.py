"""Exercises of notebook 05, binary BERT, and its capstone: an encoder of the reader's own."""

import copy

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from bitlab.convert import BitConfig, binarize
from bitlab.cost import summary
from bitlab.course.exercises import small
from bitlab.course.exercises.registry import attempted, exercise
from bitlab.layers import ElasticBinarizer

LARGEST = 2_000_000  # parameters of the capstone's encoder


@exercise("05.1", "A scale for each output", difficulty=1, minutes=5)
class LayerBits:
    cases = [(768, 768), (768, 3072), (3072, 768), (128, 256)]

    def reference(inputs, outputs):
        return inputs * outputs + 32 * (outputs + outputs + inputs + 1)

    def wrong(inputs, outputs):  # without the thresholds and the scale of the input
        return inputs * outputs + 32 * (outputs + outputs)


@exercise("05.2", "When attention begins to show", difficulty=2, minutes=8)
class AttentionShare:
    cases = [(128, 768), (512, 768), (4608, 768), (8, 128)]

    def reference(length, width):
        return length / (length + 6 * width)

    def wrong(length, width):  # one of the two products
        return length / (length + 12 * width)


@exercise("05.3", "Leave a part alone", difficulty=2, minutes=8)
class LeaveAlone:
    def judge(answer):
        for skip in ("pooler", "layer.0", "attention.output"):
            got = attempted(answer(small.bert(), skip))
            expected = small.binary_layers(binarize(small.bert(), BitConfig(modules_to_not_convert=[skip])))
            if (found := small.binary_layers(got)) != expected:
                wrong = sorted(found ^ expected)[0]
                return f"expected {len(expected)} binary layers without {skip!r}, got {len(found)}; see {wrong}"
        return None

    def reference(model, skip):
        return binarize(model, BitConfig(modules_to_not_convert=[skip]))

    def wrong(model, skip):  # a name that *is* the word, not one that contains it
        parts = [name for name, _ in model.named_modules() if name.split(".")[-1] == skip]
        return binarize(model, BitConfig(modules_to_not_convert=parts))


# Capstone 1


@exercise("05.4", "Capstone 1: a float encoder of your own", difficulty=2, minutes=8)
class OwnEncoder:
    def judge(answer):
        model = attempted(answer(small.VOCABULARY))
        if problem := small.no_classifier(model, tokens=7):
            return problem
        if (size := model.num_parameters()) > LARGEST:
            return f"expected at most {LARGEST:,} parameters (it is to train in a minute), got {size:,}"
        return None

    def reference(vocabulary):
        return BertForSequenceClassification(BertConfig(vocab_size=vocabulary, **small.SMALL))

    def no_head(vocabulary):
        return BertModel(BertConfig(vocab_size=vocabulary, **small.SMALL))

    def few_words(vocabulary):
        return BertForSequenceClassification(BertConfig(vocab_size=vocabulary // 2, **small.SMALL))

    def three_answers(vocabulary):
        return BertForSequenceClassification(BertConfig(vocab_size=vocabulary, num_labels=3, **small.SMALL))

    wrong = [no_head, few_words, three_answers]


@exercise("05.5", "Capstone 1: its binary student", difficulty=2, minutes=6)
class OwnStudent:
    def judge(answer):
        teacher = small.bert().requires_grad_(False)
        student = attempted(answer(teacher))
        if small.binary_layers(teacher):
            return "expected the teacher to stay in full precision, got a binary one: copy it first"
        if len(found := small.binary_layers(student)) != 13:
            return f"expected 13 binary layers, got {len(found)}"
        latent = dict(student.named_parameters())
        for name, weight in teacher.named_parameters():
            if not torch.equal(latent[name], weight):
                return f"expected the teacher's weights as latent weights, got others in {name}"
            if latent[name].data_ptr() == weight.data_ptr():
                return f"expected weights of the student's own, got the teacher's in {name}: it would learn along"
            if not latent[name].requires_grad:
                return f"expected weights that learn, got a frozen {name}: the teacher's are frozen, and a copy's too"
        return None

    def reference(teacher):
        return binarize(copy.deepcopy(teacher).requires_grad_(True))

    def in_place(teacher):
        return binarize(teacher)

    def frozen(teacher):
        return binarize(copy.deepcopy(teacher))

    def fresh(teacher):
        return binarize(type(teacher)(teacher.config))

    wrong = [in_place, frozen, fresh]


@exercise("05.6", "Capstone 1: measure it", difficulty=2, minutes=10)
class OwnMeasure:
    def _arguments():
        teacher, batches = small.bert(), small.batches(4)
        student = binarize(copy.deepcopy(teacher)).train()
        student(**batches[0])
        return [(teacher.eval(), student.eval(), batches)]

    cases = _arguments
    tolerance = 1e-3

    def reference(teacher, student, batches):
        return {
            "float": _accuracy(teacher, batches),
            "binary": _accuracy(student, batches),
            "smaller": summary(teacher).mib / summary(student).mib,
        }

    def floats_counted(teacher, student, batches):  # the latent weights are floats, but inference needs their signs
        ratio = teacher.num_parameters() / student.num_parameters()
        return OwnMeasure.reference(teacher, student, batches) | {"smaller": ratio}

    def last_batch(teacher, student, batches):
        return OwnMeasure.reference(teacher, student, batches[-1:])

    wrong = [floats_counted, last_batch]


def _accuracy(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    with torch.no_grad():
        right = [(model(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in batches]
    return torch.cat(right).mean().item()


@exercise("05.7", "Capstone 1: teach it", difficulty=3, minutes=20)
class OwnTraining:
    def judge(answer):
        teacher, batches = small.bert(), small.batches()
        student = binarize(copy.deepcopy(teacher).requires_grad_(True))
        untaught = copy.deepcopy(student).train()
        untaught(**batches[0])
        before, weights = small.distance(untaught, teacher, batches), copy.deepcopy(teacher.state_dict())
        attempted(answer(student, teacher, batches))
        if any(not torch.equal(weights[name], now) for name, now in teacher.state_dict().items()):
            return "expected the teacher to stay as it was, got one that has learned along"
        if not all(b.initialized for b in student.modules() if isinstance(b, ElasticBinarizer)):
            return "expected alphas that have met a batch in training mode, got untouched ones: student.train()"
        after = small.distance(student, teacher, batches)
        if after > 0.75 * before:
            return f"expected a student nearer to its teacher than {0.75 * before:.3f}, got {after:.3f}"
        return None

    def reference(student, teacher, batches):
        small.taught(student.train(), teacher, batches)

    def evaluated(student, teacher, batches):  # in eval mode nothing starts the alphas
        small.taught(student.eval(), teacher, batches)

    def both(student, teacher, batches):
        small.taught(student.train(), teacher, batches, rate=1e-3, along=True)

    def standing(student, teacher, batches):  # gradients, and no step
        small.taught(student.train(), teacher, batches, rate=0.0)

    wrong = [evaluated, both, standing]
