"""The losses against formulas in numpy, and what DistillationTrainer does with them."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate import ParallelismConfig
from datasets import Dataset
from scipy.special import expit, log_softmax, softmax
from tiny_models import CONFIGS, METHODS, WORDS, assert_same_gradients, batch, config_of, same, tiny
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, SequentialSampler
from transformers import (
    BertForMultipleChoice,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.modeling_outputs import ModelOutput

from bitlab import BitConfig, binarize, compiled
from bitlab.data.sample import sample_tokenizer
from bitlab.distillation import DistillationTrainer
from bitlab.distillation.losses import DistillationConfig, distillation_loss, soft_binary_cross_entropy
from bitlab.distillation.optim import parameter_groups
from bitlab.distillation.sampling import BucketSampler
from bitlab.distillation.teacher_outputs import KeptOutputs
from bitlab.errors import BitlabError
from bitlab.experiments import Experiment

pytestmark = pytest.mark.usefixtures("cheap")
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
REGRESSION, MULTI_LABEL = "regression", "multi_label_classification"
# what a head says: the names of its logits, their shape for one example, and the problem if it is not told by these
HEADS = {
    "class": (["logits"], (3,), None),
    "labels": (["logits"], (3,), MULTI_LABEL),
    "number": (["logits"], (1,), None),
    "numbers": (["logits"], (3,), REGRESSION),
    "class of tokens": (["logits"], (4, 5), None),
    "labels of tokens": (["logits"], (4, 5), MULTI_LABEL),
    "numbers of tokens": (["logits"], (4, 5), REGRESSION),
    "span": (["start_logits", "end_logits"], (4,), None),
}
CONFIGURATIONS = {
    "ours": DistillationConfig(attention=1.0),
    "warm": DistillationConfig(attention=1.0, temperature=2.5),
    "relative": DistillationConfig(attention=1.0, relative=True),
    "relative, padding too": DistillationConfig(attention=1.0, relative=True, count_padding=True),
    "weighted": DistillationConfig(logits=0.5, hidden=3.0, attention=0.25),
    "released": DistillationConfig.released(attention=1.0),
}
over_heads = pytest.mark.parametrize("head", HEADS)
over_configurations = pytest.mark.parametrize("name", CONFIGURATIONS)


def output(seed, head="class"):
    """A model's output with logits, 3 hidden states of width 8 and 2 attention scores of 2 heads, of unlike sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, shift=0.0):
        return 3 * torch.randn(*size, generator=generator) + shift

    names, shape, _ = HEADS[head]
    hidden = tuple(10**number * draw(3, 4, 8, shift=seed) for number in range(3))
    scores = tuple(draw(3, 2, 4, 4) for _ in range(2))
    return ModelOutput(
        {name: draw(3, *shape) for name in names} | {"hidden_states": hidden, "attention_scores": scores}
    )


def logit_loss(student, teacher, head, config):
    """Of the logits (..., classes) that count, in numpy."""
    problem, t = HEADS[head][2], config.temperature
    if (problem == REGRESSION or head == "number") and not config.soft_regression:
        return ((student - teacher) ** 2).mean()
    if problem == MULTI_LABEL:
        p, q = expit(teacher / t), expit(student / t)
        return -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean() * t**2
    loss = -(softmax(teacher / t, -1) * log_softmax(student / t, -1)).sum(-1).mean() * t**2
    return loss / (student.shape[-1] if config.per_element else 1)


def formulas(student, teacher, head, config):
    """The terms of the loss in float64 numpy, each of real tokens alone or of all."""
    real = MASK.bool().numpy() | config.count_padding
    cells = np.broadcast_to(real[:, None, :, None] & real[:, None, None, :], (3, 2, 4, 4))
    rows = [real] if "tokens" in head else [np.s_[:]]
    if head == "span":  # each sentence chooses among its own tokens
        rows = [(sentence, real[sentence]) for sentence in range(3)]
    logits = [
        logit_loss(student[name].double().numpy()[row], teacher[name].double().numpy()[row], head, config)
        for name in HEADS[head][0]
        for row in rows
    ]
    hidden = attention = 0
    for s, t in zip(student.hidden_states, teacher.hidden_states, strict=True):
        s, t = s.double().numpy()[real], t.double().numpy()[real]
        hidden += ((s - t) ** 2).mean() / (t.var(axis=0).mean() if config.relative else 1)
    for s, t in zip(student.attention_scores, teacher.attention_scores, strict=True):
        attention += ((s.double().numpy()[cells] - t.double().numpy()[cells]) ** 2).mean()
    return {
        "logits": config.logits * np.mean(logits),
        "hidden": config.hidden * hidden,
        "attention": config.attention * attention,
    }


def terms(student, teacher, head, config):
    return distillation_loss(student, teacher, MASK, config, (), HEADS[head][2])


# ------------------------------------------------------------------------------------------------ the terms


@over_configurations
@over_heads
def test_every_term_is_its_formula(head, name):
    student, teacher, config = output(1, head), output(2, head), CONFIGURATIONS[name]
    found = {term: loss.item() for term, loss in terms(student, teacher, head, config).items()}
    assert found == pytest.approx(formulas(student, teacher, head, config), rel=1e-4)


@pytest.mark.parametrize("name", [name for name, config in CONFIGURATIONS.items() if not config.count_padding])
@over_heads
def test_what_the_padding_holds_changes_nothing(head, name):
    """And nothing is learned from it."""
    filled, padding = output(1, head), MASK == 0
    for hidden in filled.hidden_states:
        hidden[padding] = 1e6
    for scores in filled.attention_scores:
        scores.masked_fill_(padding[:, None, None, :], -1e6).masked_fill_(padding[:, None, :, None], 1e6)
    if head == "span" or "tokens" in head:
        for logits in (filled[each] for each in HEADS[head][0]):
            logits[padding] = 1e4  # not more: a softmax over padding too must notice it
            logits.requires_grad_()
    expected, found = (
        terms(student, output(2, head), head, CONFIGURATIONS[name]) for student in (output(1, head), filled)
    )
    torch.testing.assert_close(found, expected)
    for logits in (filled[each] for each in HEADS[head][0] if filled[each].requires_grad):
        (grad,) = torch.autograd.grad(found["logits"], logits, retain_graph=True)
        assert grad.isfinite().all() and (grad[padding] == 0).all() and (grad[~padding] != 0).all()


def test_terms_without_weight_are_left_out_and_one_has_to_be_there():
    for config, names in (({}, {"logits", "hidden"}), ({"logits": 0.0}, {"hidden"}), ({"hidden": 0.0}, {"logits"})):
        assert terms(output(1), output(2), "class", DistillationConfig(**config)).keys() == names
    with pytest.raises(BitlabError, match="no terms"):
        terms(output(1), output(2), "class", DistillationConfig(logits=0.0, hidden=0.0))


def test_a_hard_term_without_labels_is_refused():
    with pytest.raises(BitlabError, match="needs labels: give a data set"):
        terms(output(1), output(2), "class", DistillationConfig(hard=1.0))


def test_a_regression_learns_nothing_as_released():
    """The soft cross-entropy over one logit is zero whatever the logit is, and so is its gradient."""
    student = output(1, "number")
    student.logits.requires_grad_()
    loss = terms(student, output(2, "number"), "number", DistillationConfig.released())["logits"]
    (grad,) = torch.autograd.grad(loss, student.logits)
    assert loss == 0 and torch.equal(grad, torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("head", "labels", "given", "formula"),
    [
        ("class", [torch.tensor([0, 2, 1])], None, F.cross_entropy),
        ("labels", [torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])], MULTI_LABEL, F.binary_cross_entropy_with_logits),
        ("labels", [torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])], None, F.binary_cross_entropy_with_logits),
        ("number", [torch.tensor([0.5, 2.0, 1.0])], None, F.mse_loss),
        ("numbers", [torch.arange(9.0).view(3, 3)], REGRESSION, F.mse_loss),
        ("span", [torch.tensor([0, 1, 2]), torch.tensor([3, 1, 2])], None, F.cross_entropy),
    ],
)
def test_hard_labels_and_what_they_tell_of_the_problem(head, labels, given, formula):
    student, teacher, config = output(1, head), output(2, head), DistillationConfig(hard=0.5)
    found = distillation_loss(student, teacher, MASK, config, labels, given)
    expected = []
    for name, label in zip(HEADS[head][0], labels, strict=True):
        logits = student[name].view(label.shape) if formula is F.mse_loss else student[name]
        expected.append(formula(logits, label if formula is F.cross_entropy else label.float()))
    torch.testing.assert_close(found["hard"], 0.5 * sum(expected) / len(expected))
    assert found["logits"].item() == pytest.approx(formulas(student, teacher, head, config)["logits"], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"logits": torch.ones(3, 2)}, "logits"),
        ({"hidden_states": output(2).hidden_states[:2]}, "hidden states"),
        ({"hidden_states": 3 * (torch.ones(3, 4, 16),)}, "hidden states"),
        ({"attention_scores": 2 * (torch.ones(3, 4, 4, 4),)}, "attention scores"),
    ],
)
def test_models_of_other_shapes_are_refused(change, says):
    teacher = ModelOutput(output(2) | change)
    with pytest.raises(BitlabError, match=f"differ in their {says}"):
        distillation_loss(output(1), teacher, MASK, DistillationConfig(attention=1.0))


@pytest.mark.parametrize("kind", METHODS)
def test_a_step_stays_on_its_device(kind):
    """On `meta` an operation that mixes devices fails, as it would on a GPU, and so does whatever looks at a number,
    which stalls a GPU."""
    ids = torch.zeros(8, 16, dtype=torch.long, device="meta")
    teacher, student = tiny(num_hidden_layers=1), binarize(tiny(num_hidden_layers=1), config_of(kind)).train()
    teacher.to("meta"), student.to("meta")
    with torch.no_grad():
        target = teacher(ids, output_hidden_states=True)
    found = student(ids, output_hidden_states=True)
    terms = distillation_loss(found, target, torch.ones_like(ids), DistillationConfig(hard=1.0), (ids[:, 0],))
    sum(terms.values()).backward()
    assert terms.keys() == {"logits", "hard", "hidden"}
    assert {p.grad.device.type for p in student.parameters() if p.grad is not None} == {"meta"}


# ---------------------------------------------------------------------------------------------- the trainer


def rows(count=16, lengths=(9,), labels=2, seed=0):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, WORDS, size=lengths[i % len(lengths)]).tolist() for i in range(count)]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(x) for x in ids]}
    return Dataset.from_dict(columns | {"labels": rng.integers(0, labels, size=count).tolist()})


def keeps(trainer):
    return all(isinstance(said, KeptOutputs) for said in trainer.said)


class InOrder(DistillationTrainer):
    """Takes the data as they come, so that a test knows what is in a batch."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def trainer(folder, model, teacher, data=None, kind=InOrder, collate=None, loss=None, options=None, **arguments):
    settings = {"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 1e-3, "report_to": []}
    settings |= {"lr_scheduler_type": "constant", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    settings |= {"dataloader_pin_memory": False} | arguments
    made = kind(
        model,
        teacher,
        TrainingArguments(output_dir=str(folder), **settings),
        loss,
        train_dataset=rows() if data is None else data,
        data_collator=collate or DataCollatorWithPadding(sample_tokenizer()),
        **(options or {}),
    )
    made.remove_callback(PrinterCallback)
    return made


def student(seed=0, architecture="bert", **options):
    return binarize(tiny(architecture, seed=seed, **options), BitConfig(1, 1))


def losses(trainer):
    """Of every step of its training."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def inputs_of(model):
    """What the model is given, call by call."""
    seen = []
    model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    return seen


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_the_student_learns_and_the_teacher_does_not(tmp_path, architecture):
    teacher, learner = tiny(architecture), student(architecture=architecture)
    before, start = weights(teacher), weights(learner)
    settings = {"max_steps": 25, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    made = trainer(tmp_path, learner, teacher, loss=DistillationConfig(attention=0.01), **settings)
    made.train()
    assert same(before, weights(teacher)) and not teacher.training
    assert not any(p.grad is not None for p in teacher.parameters())
    after = weights(learner)
    frozen = [name for name, p in learner.named_parameters() if torch.equal(start[name], after[name])]
    assert not frozen
    hidden = [entry["loss_hidden"] for entry in made.state.log_history if "loss" in entry]
    assert len(hidden) == 25 and hidden[-1] < 0.8 * hidden[0]
    first = made.state.log_history[0]
    assert first["loss"] == pytest.approx(sum(first[f"loss_{n}"] for n in ("logits", "hidden", "attention")), abs=2e-4)
    assert first["loss_attention"] > 0


def test_the_models_say_what_their_answers_are_where_no_labels_do(tmp_path):
    learner, teacher = student(problem_type="multi_label_classification"), tiny(seed=1)
    made = trainer(tmp_path, learner, teacher, loss=DistillationConfig(hidden=0.0))
    found = made.compute_loss(learner.train(), batch())
    torch.testing.assert_close(found, soft_binary_cross_entropy(learner(**batch()).logits, teacher(**batch()).logits))


@pytest.mark.parametrize("method", ["bit", "bibert"])
def test_labels_matter_to_bibert_alone(tmp_path, method):
    """Any other student has all that it learns from its teacher, and needs none."""
    data, found = rows(), []
    unlabelled, loss = data.remove_columns("labels"), Experiment("sst2", method=method).phases()[0].loss
    flipped = unlabelled.add_column("labels", [1 - label for label in data["labels"]])
    for each in (data, flipped, unlabelled) if method == "bit" else (data, flipped):
        learner = binarize(tiny(), BitConfig(method=method))
        trainer(tmp_path, learner, tiny(), each, loss=loss).train()
        found.append(weights(learner))
    assert {same(other, found[0]) for other in found[1:]} == {method == "bit"}


def test_evaluation_uses_the_labels(tmp_path):
    data = rows()
    made = trainer(tmp_path, tiny(), tiny(seed=1), data)
    logits = made.predict(data).predictions
    expected = F.cross_entropy(torch.from_numpy(logits), torch.tensor(data["labels"]))
    assert made.evaluate(data)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert logits.shape == (16, 2)  # logits alone: hidden states do not pile up


def test_predictions_come_in_the_order_of_their_rows(tmp_path):
    """Also where training takes its sentences by length: dev scores pair them with the labels by place."""
    data, model = rows(24, lengths=(4, 9, 6)), student().eval()
    made = trainer(tmp_path, model, None, data, train_sampling_strategy="group_by_length")
    with torch.no_grad():
        alone = [model(**{k: torch.tensor([v]) for k, v in row.items() if k != "labels"}).logits[0] for row in data]
    assert np.allclose(made.predict(data).predictions, torch.stack(alone), atol=1e-5)


@pytest.mark.parametrize(("memory", "looks"), [(2**30, 20), (0, 20 + 20 + 16)])
def test_what_a_teacher_said_is_kept_where_it_fits(tmp_path, memory, looks):
    """In three epochs it is asked once of every example; the losses are the same, as the next test holds."""
    teacher, data = tiny(), rows(20, (9, 5, 7))
    asked = inputs_of(teacher)
    trainer(tmp_path, tiny(seed=1), teacher, data, max_steps=8, options={"teacher_memory": memory}).train()
    assert sum(len(inputs["input_ids"]) for inputs in asked) == looks


class Asking(InOrder):
    """Compares every step's loss with that of a teacher that is asked; a float student says the same twice."""

    differences = ()

    def compute_loss(self, model, inputs, **kwargs):
        found = super().compute_loss(model, dict(inputs), **kwargs)
        if not model.training:
            return found
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            target = self.teachers[0](**inputs, output_hidden_states=True)
            outputs = model(**inputs, output_hidden_states=True)
            expected = sum(distillation_loss(outputs, target, inputs["attention_mask"]).values())
        self.differences = (*self.differences, abs(found.item() - expected.item()))
        return found


def changing(rows):
    """A collator that covers a word of each row, in the row itself, from the second time on that it comes."""
    for row in rows:
        place = changing.seen.get(str(row["input_ids"]))
        changing.seen[str(row["input_ids"])] = 3
        if place is not None:
            row["input_ids"][place] = 6
    return DataCollatorWithPadding(sample_tokenizer())(rows)


def left(rows):
    tokenizer = sample_tokenizer()
    tokenizer.padding_side = "left"
    return DataCollatorWithPadding(tokenizer)(rows)


def drawn(columns):
    """`set_transform` may draw at random: every look at a row finds another one."""
    ids = [torch.randint(5, WORDS, (len(row),)).tolist() for row in columns["input_ids"]]
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


def padded(row):
    return sample_tokenizer().pad(row, padding="max_length", max_length=12)


UNEVEN = rows(20, (9, 5, 7)).remove_columns("labels")
MASKING = DataCollatorForLanguageModeling(sample_tokenizer(), mlm_probability=0.4, random_replace_prob=0.0)


@pytest.mark.parametrize(
    ("data", "collate", "kept"),
    [
        (UNEVEN, DataCollatorWithPadding(sample_tokenizer()), True),
        (UNEVEN, DataCollatorWithPadding(sample_tokenizer(), padding="max_length", max_length=20), True),
        (UNEVEN, MASKING, False),
        (UNEVEN, changing, False),
        (UNEVEN, left, True),  # the first look is right, and found again where a sentence lies at the same place
        (UNEVEN.map(padded), default_data_collator, True),
        (rows(20), default_data_collator, True),
        (rows(20).add_column("row", [5] * 20), default_data_collator, True),
        (rows(20).with_transform(drawn), None, False),
    ],
)
def test_kept_outputs_are_of_the_batch_as_the_collator_makes_it(tmp_path, data, collate, kept):
    changing.seen = {}
    remove = "row" in data.column_names
    made = trainer(tmp_path, tiny(seed=1), tiny(), data, Asking, collate, max_steps=8, remove_unused_columns=remove)
    made.train()
    assert len(made.differences) == 8 and max(made.differences) < 1e-4
    assert keeps(made) is kept
    assert not kept or np.isfinite(made.evaluate(rows(4))["eval_loss"])


@pytest.mark.parametrize("make", [list, lambda rows: ConcatDataset([rows]), Dataset.to_iterable_dataset])
@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_data_that_are_no_table_train(tmp_path, make, sampling):
    """What plain Trainer takes, for more than one epoch; the teacher is asked in every step."""
    data, learner, teacher = make(rows(16, (9, 5, 7))), student(), tiny()
    start, asked = weights(learner), inputs_of(teacher)
    options = {"max_steps": 5, "train_sampling_strategy": sampling}
    made = trainer(tmp_path, learner, teacher, data, DistillationTrainer, **options)
    made.train()
    assert len(asked) == 5 and not keeps(made) and not same(start, weights(learner))


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        *(({}, True), ({"hidden": 0.0}, True), ({"logits": 0.0}, True)),
        *(({"attention": 1.0}, False), ({"directions": 1.0}, False), ({"teacher_dropout": True}, False)),
    ],
)
def test_a_teacher_keeps_its_flags_and_gets_no_gradient(tmp_path, loss, kept):
    """With every loss, for more than one epoch: so that the next student, made of a copy of it, learns."""
    teacher = tiny()
    teacher.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    flags = [p.requires_grad for p in teacher.parameters()]
    made = trainer(tmp_path, binarize(copy.deepcopy(teacher)), teacher, loss=DistillationConfig(**loss), max_steps=5)
    assert np.isfinite(losses(made)).all() and keeps(made) is kept
    assert [p.requires_grad for p in teacher.parameters()] == flags and sum(flags) == len(flags) - 1
    assert all(p.grad is None for p in teacher.parameters())


def last_step(trainer):
    """The loss and the gradients of a training's last step."""
    found = {}
    trainer.create_optimizer().register_step_pre_hook(
        lambda *_: found.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
    )
    return found | {"loss": losses(trainer)[-1]}


@pytest.mark.parametrize(("count", "last"), [(16, range(16)), (24, range(16, 24))])
def test_gradient_accumulation_is_one_large_batch(tmp_path, count, last):
    """Batches of 8, accumulated by two. Of three the second step has one, and alphas the gradient of just that one."""
    prepared, found = student().double(), []
    prepared.train()(**batch())  # starts the alphas
    for size, times, data in ((8, 2, rows(count)), (len(last), 1, rows(count).select(last))):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times, "max_grad_norm": 0.0}
        options |= {"num_train_epochs": 1, "max_steps": -1, "learning_rate": 0.0}
        options["options"] = {"alpha_learning_rate": 0.0}
        found.append(last_step(trainer(tmp_path, copy.deepcopy(prepared), tiny().double(), data, **options)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "make", [lambda teacher: teacher, binarize, lambda teacher: shared(teacher, "weight"), lambda t: shared(t, "data")]
)
def test_a_student_that_shares_with_its_teacher_is_refused(tmp_path, make):
    teacher = tiny()
    with pytest.raises(BitlabError, match="copy"):
        trainer(tmp_path, make(teacher), [tiny(seed=2), teacher])
    trainer(tmp_path, binarize(copy.deepcopy(tiny())), tiny())


def shared(teacher, how):
    """Another model with the same word table."""
    other, tables = tiny(seed=1), teacher.bert.embeddings.word_embeddings
    if how == "weight":
        other.bert.embeddings.word_embeddings.weight = tables.weight
    else:
        other.bert.embeddings.word_embeddings.weight.data = tables.weight.data
    return other


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor"),
        ({}, {"compute_loss_func": lambda *_, **__: None}, "compute_loss_func"),
        ({"optim": "sgd"}, {}, "optim='sgd'.*AdamW"),
        ({"optim": "adafactor"}, {}, "optim='adafactor'.*AdamW"),
        ({"optim_args": "betas=1"}, {}, "optim_args"),
        ({"optim_target_modules": ["bert"]}, {}, "optim_target_modules"),
        ({}, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1.0})}, "optimizer_cls_and_kwargs.*AdamW"),
        ({"adam_beta1": 0.5}, {"released_optimizer": True}, "adam_beta1"),
        ({"adam_epsilon": 1e-3}, {"released_optimizer": True}, "adam_epsilon"),
        ({}, {"released_optimizer": True, "optimizers": (torch.optim.SGD([torch.zeros(1)]), None)}, "released_opt"),
        ({"parallelism_config": ParallelismConfig()}, {}, "parallelism_config"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path, arguments, options, says):
    with pytest.raises(BitlabError, match=says):
        trainer(tmp_path, student(), tiny(), options=options, **arguments)


def test_settings_of_training_without_a_teacher_are_trainers_own(tmp_path):
    """Label smoothing and a loss of one's own, which is told the number of labels in all accumulated batches."""
    told = []

    def own(outputs, labels, num_items_in_batch):
        told.append(int(num_items_in_batch))
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    plain, as_told, smoothed = (
        losses(trainer(tmp_path, tiny(), None, gradient_accumulation_steps=2, max_steps=1, **options))[0]
        for options in ({}, {"options": {"compute_loss_func": own}}, {"label_smoothing_factor": 0.2})
    )
    assert as_told == pytest.approx(plain, rel=1e-5) and told == [16, 16]
    probs = tiny()(**{k: torch.tensor(rows()[k]) for k in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
    assert smoothed == pytest.approx(0.8 * plain - 0.2 * probs.mean().item(), rel=1e-4)


def ordered_batches(places, size=8):
    """Whether the batches, one behind the other, are in order."""
    batches = sorted(sorted(places[k : k + size]) for k in range(0, len(places), size))
    return all(one[-1] <= other[0] for one, other in pairwise(batches))


def test_the_order_follows_data_seed_drop_last_and_the_length_column(tmp_path):
    data = rows(20, (9, 5, 7)).add_column("length", list(range(20)))

    def order(**given):
        return list(trainer(tmp_path, student(), tiny(), data, DistillationTrainer, **given)._get_train_sampler())

    assert order(seed=1) == order(seed=2, data_seed=1) != order(seed=1, data_seed=2)
    assert len(order()) == 24 and len(set(order(dataloader_drop_last=True))) == 16
    by_length = order(train_sampling_strategy="group_by_length")
    assert ordered_batches(by_length) and not ordered_batches(order())


def test_training_that_diverges_is_one_line(tmp_path):
    for steps, says in ((5, "the loss of step [2-5] is"), (1, r"[\w.]+ holds NaN")):
        learner = student()
        with pytest.raises(BitlabError, match=f"diverged, {says}.*lower learning rates"):
            made = trainer(tmp_path, learner, tiny(), learning_rate=1e38, max_steps=steps)
            if steps == 1:
                learner.classifier.weight.register_hook(lambda grad: grad * torch.nan)
            made.train()


def test_a_checkpoint_to_go_on_from_is_whole(tmp_path):
    made, checkpoint = trainer(tmp_path, student(), tiny(), save_strategy="steps", save_steps=1), "checkpoint-2"
    made.train()
    made.train(str(tmp_path / "checkpoint-1"))
    for lost in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        part = (tmp_path / checkpoint / lost).rename(tmp_path / lost)
        for given in (str(tmp_path / checkpoint), True):
            with pytest.raises(BitlabError, match=f"has no {lost}"):
                made.train(given)
        part.rename(tmp_path / checkpoint / lost)


def test_a_long_training_compiles_smaller_formulas(tmp_path):
    """A short one, such as a lesson's, would spend more on compiling than it gains."""
    seen, before = [], compiled.WORTH_IT
    for steps in (2, 1000):
        made = trainer(tmp_path, student(), tiny(), max_steps=steps)
        made.model.register_forward_hook(lambda *_, made=made: seen.append(compiled.WORTH_IT))
        made.add_callback(Stop())
        made.train()
    assert seen[0] == before == compiled.WORTH_IT > seen[-1]


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_the_word_tables_gradient_is_that_of_the_batchs_rows(tmp_path, monkeypatch):
    """Whatever is trained comes out as with a gradient for the whole table."""
    seen, results = [], []
    for sparse in (True, False):
        if not sparse:
            monkeypatch.setattr("bitlab.distillation.trainer.sparse_rows", lambda embedding: nullcontext())
        made = trainer(tmp_path / str(sparse), student(), tiny(), max_steps=3)
        words = made.model.get_input_embeddings()
        words.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.is_sparse))
        results.append((losses(made), words.weight.detach().clone()))
        assert not words.sparse and words.weight.grad is None
    assert seen == [True] * 3 + [False] * 3
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_several_teachers_are_averaged(tmp_path):
    teachers = [tiny(seed=1), tiny(seed=2)]
    one, other, both = (
        losses(trainer(tmp_path, student(), each, max_steps=1))[0] for each in (teachers[:1], teachers[1:], teachers)
    )
    assert both == pytest.approx((one + other) / 2, rel=1e-4) and abs(one - other) > 1e-2


@pytest.mark.parametrize("released", [False, True])
def test_the_teachers_mode(tmp_path, released):
    """A teacher with dropout says the same every time, unless it runs as the released program's did."""
    teacher = tiny()
    teacher.dropout.p = 0.5
    made = trainer(tmp_path, student(), teacher, loss=DistillationConfig.released() if released else None)
    learner = made.model.train()
    assert len({made.compute_loss(learner, batch()).item() for _ in range(3)}) == (3 if released else 1)
    assert teacher.training is released


def test_the_released_optimizer_clips_by_itself(tmp_path):
    made = trainer(tmp_path, student(), tiny(), options={"released_optimizer": True, "alpha_learning_rate": 3e-5})
    assert type(made.create_optimizer()).__name__ == "AdamWithoutCorrection" and made.args.max_grad_norm == 0
    assert {g["name"]: g["lr"] for g in made.optimizer.param_groups}["alpha"] == 3e-5
    made.train()
    ours = trainer(tmp_path, student(), tiny())
    assert isinstance(ours.create_optimizer(), torch.optim.AdamW) and ours.args.max_grad_norm == 1.0


def test_clipping_in_the_step_trains_as_clipping_before_it(tmp_path):
    """AdamW with the same groups, given by the caller, is clipped by accelerate."""
    learned, norms = [], []
    for given in (False, True):
        model = student()
        options = {"optimizers": (torch.optim.AdamW(parameter_groups(model, 1e-3)), None)} if given else {}
        made = trainer(tmp_path, model, tiny(), options=options, max_grad_norm=0.01, weight_decay=0.01)
        made.train()
        learned.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        norms.append([entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry])
    assert len(norms[0]) == 2 and norms[0][0] > 0.01
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(*learned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "says"),
    [("n_gpu", r"2 GPUs.*torchrun.*CUDA_VISIBLE_DEVICES"), ("world_size", "average_tokens_across_devices")],
)
def test_what_several_devices_would_not_do_is_refused(tmp_path, monkeypatch, name, says):
    trainer(tmp_path, student(), tiny(), average_tokens_across_devices=False)
    monkeypatch.setattr(TrainingArguments, name, 2)
    with pytest.raises(BitlabError, match=says):
        trainer(tmp_path, student(), tiny(), average_tokens_across_devices=False)


def pretraining(seed=0):
    torch.manual_seed(seed)
    return BertForPreTraining(CONFIGS["bert"]())


@pytest.mark.parametrize(
    ("make", "has"), [(lambda: tiny(head="bare"), "last_hidden_state"), (pretraining, "prediction_logits")]
)
def test_a_model_without_logits(tmp_path, make, has):
    """One line by default; its hidden states alone can be learned."""
    data = rows().remove_columns("labels")
    for loss in (DistillationConfig(), DistillationConfig(logits=0.0, hard=1.0)):
        with pytest.raises(BitlabError, match=rf"{has}.*logits=0\.0 and hard=0\.0"):
            trainer(tmp_path, binarize(make()), make(), data, loss=loss).train()
    for weights in ({"hidden": 1.0}, {"hidden": 0.0, "attention": 1.0}, {"hidden": 0.0, "directions": 1.0}):
        loss = DistillationConfig(logits=0.0, **weights)
        assert losses(trainer(tmp_path, binarize(make()), make(), data, loss=loss))[0] > 0


def test_data_without_a_padding_mask_have_no_padding(tmp_path):
    found = []
    for data in (rows(), rows().remove_columns("attention_mask")):
        made = trainer(tmp_path, tiny(seed=1), tiny(), data, collate=default_data_collator, max_steps=5)
        found.append(losses(made))
        assert keeps(made)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_data_without_a_padding_mask_get_one_before_processes_pad_them(tmp_path, monkeypatch):
    made = trainer(tmp_path, student(), tiny(), collate=default_data_collator)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    monkeypatch.setattr(
        made.accelerator, "pad_across_processes", lambda x, dim, pad_index: F.pad(x, (0, 2), value=pad_index)
    )
    seen = inputs_of(made.model)
    made.current_gradient_accumulation_steps = 1
    made.training_step(made.model, {"input_ids": batch()["input_ids"]})
    assert torch.equal(seen[0]["attention_mask"], F.pad(torch.ones(3, 9, dtype=torch.long), (0, 2)))


@pytest.mark.parametrize("masked", [True, False])
def test_multiple_choice(tmp_path, masked):
    """(B, choices, T) are B choices sentences to the encoder."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(BertForMultipleChoice(CONFIGS["bert"]()).eval())
    teacher, learner = models
    ids = torch.randint(3, WORDS, (4, 3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if masked:
        mask[:, 1:, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        outputs = [model(**inputs, output_hidden_states=True) for model in (learner, teacher)]
    logits = logit_loss(*(o.logits.double().numpy() for o in outputs), "class", DistillationConfig())
    pairs = [[h.double()[mask.view(12, 9) == 1] for h in o.hidden_states] for o in outputs]
    hidden = sum(F.mse_loss(s, t).item() for s, t in zip(*pairs, strict=True))
    data = Dataset.from_dict({name: x.tolist() for name, x in inputs.items()})
    data = data if masked else data.remove_columns("attention_mask")
    loss = DistillationConfig(attention=0.5, directions=0.5)
    made = trainer(tmp_path, learner, teacher, data, collate=default_data_collator, loss=loss)
    made.model.set_attn_implementation("bitlab")
    made.train()
    first = made.state.log_history[0]
    assert first["loss_logits"] == pytest.approx(logits, abs=1e-4)
    assert first["loss_hidden"] == pytest.approx(hidden, abs=1e-4)
    assert first["loss_attention"] > 0 and first["loss_query"] > 0


@pytest.mark.parametrize("loss", [{"attention": 1.0}, {"directions": 1.0}])
def test_reentrant_checkpointing_is_refused_where_a_term_would_teach_nothing(tmp_path, loss):
    options = {"loss": DistillationConfig(**loss), "max_steps": 1, "gradient_checkpointing": True}
    with pytest.raises(BitlabError, match="use_reentrant"):
        reentrant = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
        trainer(tmp_path, student(), tiny(), **options, **reentrant).train()
    trainer(tmp_path, student(), tiny(), **options).train()  # as transformers does it of its own accord


def test_an_optimizer_of_ones_own_is_used(tmp_path):
    learner = student()
    own = torch.optim.SGD(learner.parameters(), lr=0.1)
    made = trainer(tmp_path, learner, tiny(), optim="sgd", options={"optimizers": (own, None)})
    made.train()
    assert made.create_optimizer() is made.optimizer
    assert isinstance(trainer(tmp_path, student(), tiny(), optim="adamw_torch").create_optimizer(), torch.optim.AdamW)


# ---------------------------------------------------------------------------------------------- the sampler

LENGTHS = np.random.default_rng(0).integers(5, 60, size=1003).tolist()


def waste(order, size=16):
    """Padding as a share of all places, when batches are padded to their longest example."""
    batches = [[LENGTHS[i] for i in order[k : k + size]] for k in range(0, len(order), size)]
    return 1 - sum(map(sum, batches)) / sum(max(b) * len(b) for b in batches)


@pytest.mark.parametrize("count", [1003, 992, 5, 1])
def test_buckets_hold_every_example_and_fill_the_last_batch(count):
    """1003 examples are 62 batches of 16 and 11 examples: five come twice."""
    order = list(BucketSampler(LENGTHS[:count], 16))
    assert len(order) == len(BucketSampler(LENGTHS[:count], 16)) == -(-count // 16) * 16
    times = np.bincount(order, minlength=count)
    assert times.min() >= 1 and times.max() - times.min() <= 1


def test_buckets_follow_seed_and_epoch_and_nothing_else():
    def order(seed, epoch):
        torch.manual_seed(torch.seed() % 2**31)
        sampler = BucketSampler(LENGTHS, 16, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(3, 5) == order(3, 5)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    state = torch.get_rng_state()
    list(BucketSampler(LENGTHS, 16))
    assert torch.equal(state, torch.get_rng_state())


def test_buckets_waste_little():
    torch.manual_seed(0)
    assert waste(torch.randperm(1003).tolist()) > 0.3
    assert waste(list(BucketSampler(LENGTHS, 16))) < 0.06


def test_the_batches_come_in_no_order_of_length():
    order = list(BucketSampler(LENGTHS, 16))
    longest = [max(LENGTHS[i] for i in order[k : k + 16]) for k in range(0, len(order), 16)]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.4
    for start in range(0, len(order), 16):
        batch_lengths = [LENGTHS[i] for i in order[start : start + 16]]
        assert max(batch_lengths) - min(batch_lengths) < 16


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_every_epoch_has_its_own_order(tmp_path, sampling):
    options = {"max_steps": 6, "train_sampling_strategy": sampling}
    made = trainer(tmp_path, student(), tiny(), kind=DistillationTrainer, **options)
    seen = inputs_of(made.model)
    made.train()
    ids = [sentence for inputs in seen for sentence in inputs["input_ids"].tolist()]
    first, second, third = (ids[k : k + 16] for k in (0, 16, 32))
    assert first != second != third and sorted(first) == sorted(second) == sorted(third)


def test_gradient_checkpointing_changes_no_gradient():
    """Recomputing activations in the backward pass gives the same gradients, alphas' and betas' among them."""
    model, found = binarize(tiny()).train(), []
    model(**batch())  # initialises the alphas
    for turn_on in (lambda: None, model.gradient_checkpointing_enable):
        turn_on()
        model.zero_grad()
        output = model(**batch(), output_hidden_states=True)
        (output.logits.square().sum() + sum(h.square().mean() for h in output.hidden_states)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_same_gradients(*found)
    assert any("alpha" in name for name in found[0])
