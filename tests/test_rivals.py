"""What the rivals share with BiT: padding, saving, costs, precisions, experiments from the command line, refusals."""

import json
from contextlib import contextmanager

import pytest
import torch
from tiny_models import CONFIGS, batch, outputs, tiny, warm_up
from transformers import BertConfig, BertModel

import bitlab
from bitlab import BitConfig, BitlabError, binarize, cli, packed, set_precision
from bitlab.attention import binary_attention
from bitlab.config import parse_precision
from bitlab.data.tasks import TASKS
from bitlab.experiments import Experiment, run, running
from bitlab.experiments import stage as stages
from bitlab.experiments.recipes import RECIPES
from bitlab.experiments.schedule import Schedule, StageSettings

RIVALS = [("bibert", 1, 1), ("binarybert", 2, 8), ("binarybert", 2, 4), ("binarybert", 1, 8), ("binarybert", 1, 1)]


def rival(method, weight_bits, activation_bits, architecture="bert", **options):
    return warm_up(binarize(tiny(architecture, **options), BitConfig(weight_bits, activation_bits, method=method)))


# ------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(("method", "weight_bits", "activation_bits"), RIVALS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_example_does_not_see_padding_or_neighbours(architecture, method, weight_bits, activation_bits):
    model, inputs = rival(method, weight_bits, activation_bits, architecture).double(), batch(size=4, length=7)
    together = outputs(model, **inputs)[0]
    assert together.std(dim=0).max() > 1e-2
    longer = batch(size=6, length=12, seed=5)
    longer["input_ids"][:4] = torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=1)
    longer["attention_mask"][:4, 7:] = 0
    torch.testing.assert_close(outputs(model, **longer)[0][:4], together, rtol=0, atol=1e-5)
    unmasked = dict(longer, attention_mask=torch.ones_like(longer["attention_mask"]))
    assert (outputs(model, **unmasked)[0][:4] - together).abs().max() > 1e-3  # the mask is what does it


@pytest.mark.parametrize(("method", "weight_bits", "activation_bits"), RIVALS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_saved_and_loaded_bit_equal(architecture, method, weight_bits, activation_bits, tmp_path):
    model = rival(method, weight_bits, activation_bits, architecture)
    before = outputs(model, **batch(pad=2))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["method"] == method
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded, **batch(pad=2)), before, strict=True))
    loaded.train()(**batch(seed=4))  # nothing is initialised again
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("method", "weight_bits", "activation_bits"), RIVALS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_float_checkpoint_loads_as_a_rival(architecture, method, weight_bits, activation_bits, tmp_path):
    original = tiny(architecture)
    original.save_pretrained(tmp_path)
    config = BitConfig(weight_bits, activation_bits, method=method)
    loaded = type(original).from_pretrained(tmp_path, quantization_config=config)
    expected = outputs(warm_up(binarize(original, config)), **batch(pad=2))
    assert all(torch.equal(a, b) for a, b in zip(outputs(warm_up(loaded), **batch(pad=2)), expected, strict=True))


@pytest.mark.parametrize(("method", "weight_bits", "activation_bits"), RIVALS)
def test_training_steps_lower_the_loss(method, weight_bits, activation_bits):
    model = binarize(tiny(num_labels=2), BitConfig(weight_bits, activation_bits, method=method)).train()
    inputs, labels = batch(size=8, length=6), torch.arange(8) % 2
    inputs["input_ids"][:, 0] = 3 + labels
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(60):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        assert not [name for name, p in learning if p.grad is None or not p.grad.isfinite().all()]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if (method, activation_bits) != ("binarybert", 1):  # which hardly learns anything, here as in the published table
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_full_precision_is_the_float_model():
    model, inputs = rival("bibert", 1, 1), batch(pad=2)
    set_precision(model, "W32A32")
    torch.testing.assert_close(outputs(model, **inputs)[0], outputs(tiny(), **inputs)[0])  # GELU and softmax are back


def test_bibert_keeps_the_activation():
    names = {type(module).__name__ for module in rival("bibert", 1, 1).modules()}
    assert "GELUActivation" in names and "ReLU" not in names
    _, bits = binary_attention(
        rival("bibert", 1, 1).bert.encoder.layer[0].attention.self, *torch.randn(3, 1, 2, 4, 8), None
    )
    assert set(bits.unique().tolist()) == {0.0, 1.0}


def test_packing_is_for_bit_alone(tmp_path):
    for method, *bits in RIVALS:
        model = rival(method, *bits)
        with pytest.raises(BitlabError, match=f"only models of method 'bit' can be packed.*{method}") as error:
            packed.save_packed(model, tmp_path / "packed")
        assert "\n" not in str(error.value) and not (tmp_path / "packed").exists()


# -------------------------------------------------------------------------------------------------------- costs


def meta(bits=None, method="bit"):
    with torch.device("meta"):
        model = BertModel(BertConfig())
    return binarize(model, BitConfig(*bits, method=method)) if bits else model


def test_costs_of_bert_base():
    full, bit, bibert = (bitlab.cost.summary(m) for m in (meta(), meta((1, 1)), meta((1, 1), "bibert")))
    assert bibert.one_bit_parameters == bit.one_bit_parameters == 108_965_376
    linears = 12 * (4 * 768 + 3072 + 768) + 768  # one scale an output, no alphas, no thresholds
    assert bibert.kinds["scales"].float_parameters == linears
    assert bibert.kinds["thresholds"].float_parameters == 0
    assert bibert.matmul_flops == bit.matmul_flops
    gelu, softmax = (5 - 1) * 12 * 128 * 3072, 5 * 12 * 12 * 128 * 128  # it keeps the one and drops the other
    assert bibert.flops - bit.flops == gelu - softmax

    ternary, split = (bitlab.cost.summary(meta(bits, "binarybert")) for bits in ((2, 4), (1, 4)))
    half = 12 * (2 * 768 * 768 + 768 * 3072) + 768 * 768 + 30522 * 768
    assert ternary.two_bit_parameters == half and ternary.one_bit_parameters == 0
    assert split.one_bit_parameters == 2 * half and split.two_bit_parameters == 0
    assert split.kinds["biases"].float_parameters == 2 * ternary.kinds["biases"].float_parameters
    assert bit.mib < split.mib < 20 < full.mib
    assert split.matmul_flops < bitlab.cost.summary(meta((1, 8))).matmul_flops


def test_every_parameter_is_counted_once():
    for method, *bits in RIVALS:
        model = rival(method, *bits)
        total = bitlab.cost.summary(model)
        unused = {"clip": 2, "alpha": 1}["alpha" if bits[1] == 8 else "clip"]
        binarizers = sum(isinstance(m, bitlab.ElasticBinarizer) for m in model.modules()) * (method == "binarybert")
        scales = sum(total.kinds[k].float_parameters for k in ("scales", "row scales"))
        learned = binarizers * (2 if bits[1] == 8 else 1)
        rows_and_layers = scales - learned
        expected = sum(p.numel() for p in model.parameters()) - binarizers * unused
        assert total.parameters - rows_and_layers == expected


# --------------------------------------------------------------------------------- precisions, recipes, budgets


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "bibert", "activation_bits": 2}, "W1A2 does not exist for bibert.*activations 1 or 32"),
        ({"method": "bibert", "weight_bits": 2}, "W2A1 does not exist for bibert: weights have 1 or 32 bits"),
        ({"weight_bits": 2}, "W2A1 does not exist: weights have 1 or 32 bits"),
        ({"method": "binarybert", "weight_bits": 4}, "W4A1 does not exist for binarybert: weights have 1, 2 or 32"),
        ({"method": "bit-released"}, "method 'bit-released' does not exist: choose bit, bibert or binarybert"),
    ],
)
def test_precisions_belong_to_methods(options, says):
    with pytest.raises(BitlabError, match=says) as error:
        BitConfig(**options)
    assert "\n" not in str(error.value)


def test_set_precision_knows_the_method():
    with pytest.raises(BitlabError, match="W1A2 does not exist for bibert"):
        set_precision(rival("bibert", 1, 1), "W1A2")
    assert parse_precision("W2A4", "binarybert") == (2, 4)


def test_default_schedules():
    found = {method: Experiment("rte", method=method).schedule for method in RECIPES}
    bit = "W32A32 -> W1A2 -> W1A1"
    rivals = {"bibert": "W32A32 -> W1A1", "binarybert": "W32A32 -> W2A4 -> W1A4"}
    assert found == {"bit": bit, "bit-released": bit, **rivals}
    for method, schedule in rivals.items():
        assert str(Schedule.parse(schedule, method)) == schedule
        assert BitConfig.from_precision(schedule.split()[-1], method).precision == schedule.split()[-1]
    assert Experiment("rte", method="binarybert").stage_teacher == "full"
    assert Experiment("rte", method="binarybert", stage_teacher="previous").stage_teacher == "previous"


def test_biberts_own_rates():
    rates = {
        "cola": 1e-4,
        "mnli": 5e-5,
        "mrpc": 2e-4,
        "qnli": 1e-4,
        "qqp": 1e-4,
        "rte": 1e-5,
        "sst2": 1e-4,
        "stsb": 1e-4,
    }
    for name, task in TASKS.items():
        settings = Experiment(name, method="bibert", model="minilm", preset="full").settings("W1A1")
        assert settings.learning_rate == rates[name] and settings.batch_size == 16
        assert settings.epochs == {"mnli": 5, "qqp": 5, "qnli": 10}.get(name, task.epochs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "bibert", "schedule": "W1A2 -> W1A1"}, "W1A2 does not exist for bibert"),
        ({"method": "binarybert", "schedule": "W1A4 -> W2A1"}, "goes up in precision"),
        ({"schedule": "W2A4 -> W1A4"}, "W2A4 does not exist"),
        ({"method": "bibert", "hidden_weight": 2.0}, "bibert has its own loss: leave hidden_weight alone"),
        ({"method": "binarybert", "temperature": 2.0}, "leave temperature alone"),
    ],
)
def test_experiments_that_make_no_sense(options, says):
    with pytest.raises(BitlabError, match=says) as error:
        Experiment("rte", **options)
    assert "\n" not in str(error.value)


def test_phases_share_a_stages_steps():
    whole = StageSettings(epochs=3, batch_size=8, learning_rate=1e-3, max_steps=25)
    parts = [whole.share(number, 2, rate) for number, rate in enumerate((2.5, 1.0))]
    assert [p.max_steps for p in parts] == [12, 13]
    assert [p.learning_rate for p in parts] == [2.5e-3, 1e-3] and [p.epochs for p in parts] == [1.5, 1.5]
    assert whole.share(0, 1) == whole


# ------------------------------------------------------------------------------------------------- experiments


@contextmanager
def quick():
    """One thread, no compiler, and any teacher will do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITLAB_COMPILE", "off")
        patch.setattr(stages.Prepared, "trivial_score", lambda self: 0.0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def cheap(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with quick():
        yield tmp_path


@pytest.mark.parametrize(
    ("method", "precisions"), [("bibert", ["W32A32", "W1A1"]), ("binarybert", ["W32A32", "W2A4", "W1A4"])]
)
def test_from_the_command_line(cheap, capsys, method, precisions):
    command = f"glue sst2 --data sample --method {method} --train-examples 64 --max-steps 4 --batch-size 8 --output run"
    assert cli.main(command.split()) == 0
    result = json.loads((cheap / "run" / "result.json").read_text())
    assert result["method"] == method and result["schedule"] == " -> ".join(precisions)
    assert [stage["precision"] for stage in result["stages"]] == precisions
    assert [stage["steps"] for stage in result["stages"]] == [4] * len(precisions)
    for stage in result["stages"]:
        assert {"precision", "score", "metrics", "steps", "seconds"} <= set(stage) and 0 <= stage["score"] <= 1
    model = bitlab.models.load_model(cheap / "run" / precisions[-1], "sst2")
    config = model.config.quantization_config
    assert (config.method, config.precision, config.history) == (method, precisions[-1], result["schedule"])
    log = json.loads((cheap / "run" / precisions[-1] / "log.json").read_text())
    assert sorted(entry["step"] for entry in log if "loss" in entry) == [1, 2, 3, 4]
    capsys.readouterr()


def steps_of(monkeypatch):
    """What each training of a stage was given."""
    seen, original = [], running.train_stage

    def train_stage(model, teachers, rows, collate, settings, folder, **options):
        kinds = [getattr(t.config, "quantization_config", None) for t in teachers]
        seen.append((options["title"], settings.learning_rate, settings.max_steps, kinds, options.get("distillation")))
        return original(model, teachers, rows, collate, settings, folder, **options)

    monkeypatch.setattr(running, "train_stage", train_stage)
    return seen


TINY = {"data": "sample", "train_examples": 64, "batch_size": 8, "learning_rate": 1e-3}


def test_what_binarybert_trains(cheap, monkeypatch):
    seen = steps_of(monkeypatch)
    run(Experiment("sst2", method="binarybert", max_steps=5, **TINY), "run", report=lambda line: None)
    assert [(title, rate, steps) for title, rate, steps, *_ in seen[1:]] == [
        *(("W2A4", 2.5e-3, 2), ("W2A4", 1e-3, 3)),
        *(("W1A4", 2.5e-3, 2), ("W1A4", 1e-3, 3)),
    ]
    assert all(kinds == [None] for *_, kinds, _ in seen[1:])  # the full-precision model teaches every stage
    assert [loss.logits for *_, loss in seen[1:]] == [0, 1, 0, 1]


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(settings, folder, result) of a run in two phases of 30 steps each."""
    folder = tmp_path_factory.mktemp("unbroken")
    with quick():
        run(Experiment("sst2", method="bibert", max_steps=2, **TINY), folder / "first", report=lambda line: None)
        given = {"method": "binarybert", "schedule": "W1A4", "max_steps": 60, **TINY}
        given["teacher"] = str(folder / "first" / "W32A32")
        return given, folder / "run", run(Experiment("sst2", **given), folder / "run", report=lambda line: None)


@pytest.mark.parametrize("phase", [1, 2])
def test_an_interrupted_phase_is_gone_on_with(unbroken, cheap, monkeypatch, phase):
    """Killed at step 28 of 30 of a phase, three steps after its last checkpoint: the same weights in the end."""
    given, folder, whole = unbroken
    original = stages.ShowProgress.on_step_end

    def dying(self, args, state, control, **kwargs):
        if args.output_dir.endswith(f"phase{phase}") and state.global_step == 28:
            raise Killed
        original(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.ShowProgress, "on_step_end", dying)
        with pytest.raises(Killed):
            run(Experiment("sst2", **given), "broken", report=lambda line: None)
    seen = []
    begins = stages.ShowProgress.on_train_begin
    monkeypatch.setattr(
        stages.ShowProgress,
        "on_train_begin",
        lambda self, args, state, control, **kw: (seen.append(state.global_step), begins(self, args, state, control))[
            1
        ],
    )
    result = run(Experiment("sst2", **given), "broken", report=lambda line: None)
    assert seen == ([25, 0] if phase == 1 else [25, 25])
    assert result["stages"][1]["score"] == whole["stages"][1]["score"] and result["stages"][1]["steps"] == 60
    ours, theirs = (bitlab.models.load_model(run_ / "W1A4", "sst2").state_dict() for run_ in (cheap / "broken", folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_labels_matter_to_bibert(cheap):
    """The only method that sees the data set's labels in distillation."""
    from test_distillation import rows, trainer

    data = rows()
    flipped = data.remove_columns("labels").add_column("labels", [1 - label for label in data["labels"]])
    for method, expected in (("bit", True), ("bibert", False)):
        found = []
        loss = Experiment("sst2", method=method).phases()[0].loss
        for number, set_ in enumerate((data, flipped)):
            student = binarize(tiny(num_labels=2), BitConfig(method=method))
            trainer(
                cheap / f"{method}{number}", student, tiny(num_labels=2), set_, options={"distillation": loss}
            ).train()
            found.append(student.state_dict())
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0]) is expected


@pytest.mark.parametrize(("method", "weight_bits", "activation_bits"), RIVALS)
def test_mixed_precision(method, weight_bits, activation_bits):
    """Under bf16 autocast the types of all products fit, forward and backward."""
    model, inputs = rival(method, weight_bits, activation_bits), batch(pad=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.train()(**inputs).logits
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert logits.isfinite().all() and logits.std() > 1e-2
