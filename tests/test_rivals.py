"""The rivals' costs, precisions and experiments; test_attention.py and test_convert.py run every method, too."""

import json

import pytest
import torch
from tiny_models import RIVALS, Killed, batch, binary, cheaply, same, save, silent
from transformers import BertConfig, BertModel

import bitlab
from bitlab import BitConfig, BitlabError, binarize, cli, packed
from bitlab.attention import binary_attention
from bitlab.experiments import Experiment, run, running
from bitlab.experiments import stage as stages
from bitlab.experiments.recipes import RECIPES
from bitlab.experiments.schedule import ARROW, StageSettings, parse_schedule

# ------------------------------------------------------------------------------------------------------ models


def test_bibert_keeps_the_activation():
    model = binary(kind="bibert W1A1")
    names = {type(module).__name__ for module in model.modules()}
    assert "GELUActivation" in names and "ReLU" not in names
    _, bits = binary_attention(model.bert.encoder.layer[0].attention.self, *torch.randn(3, 1, 2, 4, 8), None)
    assert set(bits.unique().tolist()) == {0.0, 1.0}


def test_packing_is_for_bit_alone(tmp_path):
    for kind in RIVALS:
        with pytest.raises(BitlabError, match=f"only models of method 'bit' can be packed.*{kind.split()[0]}"):
            packed.save_packed(binary(kind=kind), tmp_path / "packed")
        assert not (tmp_path / "packed").exists()


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
    for kind in RIVALS:
        model = binary(kind=kind)
        total = bitlab.cost.summary(model)
        binarizers = sum(isinstance(m, bitlab.ElasticBinarizer) for m in model.modules())  # none of BiBERT's
        scales = sum(total.kinds[k].float_parameters for k in ("scales", "row scales"))
        learned, unused = (2, 1) if kind.endswith("8") else (1, 2)  # the two clips, or alpha
        expected = sum(p.numel() for p in model.parameters()) - binarizers * unused
        assert total.parameters - (scales - binarizers * learned) == expected


# --------------------------------------------------------------------------------- precisions, recipes, budgets


def test_default_schedules():
    found = {method: Experiment("rte", method=method).schedule for method in RECIPES}
    bit = "W32A32 -> W1A2 -> W1A1"
    rivals = {"bibert": "W32A32 -> W1A1", "binarybert": "W32A32 -> W2A4 -> W1A4"}
    assert found == {"bit": bit, "bit-released": bit, **rivals}
    for method, schedule in rivals.items():
        assert ARROW.join(parse_schedule(schedule, method)) == schedule
        assert BitConfig.from_precision(schedule.split()[-1], method).precision == schedule.split()[-1]
    assert Experiment("rte", method="binarybert").stage_teacher == "full"
    assert Experiment("rte", method="binarybert", stage_teacher="previous").stage_teacher == "previous"


def test_phases_share_a_stages_steps():
    whole = StageSettings(epochs=3, batch_size=8, learning_rate=1e-3, max_steps=25)
    parts = [whole.share(number, 2, rate) for number, rate in enumerate((2.5, 1.0))]
    assert [p.max_steps for p in parts] == [12, 13]
    assert [p.learning_rate for p in parts] == [2.5e-3, 1e-3] and [p.epochs for p in parts] == [1.5, 1.5]
    assert whole.share(0, 1) == whole


# ------------------------------------------------------------------------------------------------- experiments


@pytest.fixture(scope="module")
def quick():
    """Cheaply, and any teacher will do."""
    with cheaply(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.Prepared, "trivial_score", lambda self: 0.0)
        yield


@pytest.fixture
def cheap(quick, here):
    return here


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
    run(Experiment("sst2", method="binarybert", max_steps=5, **TINY), "run", report=silent)
    assert [(title, rate, steps) for title, rate, steps, *_ in seen[1:]] == [
        *(("W2A4", 2.5e-3, 2), ("W2A4", 1e-3, 3)),
        *(("W1A4", 2.5e-3, 2), ("W1A4", 1e-3, 3)),
    ]
    assert all(kinds == [None] for *_, kinds, _ in seen[1:])  # the full-precision model teaches every stage
    assert [loss.logits for *_, loss in seen[1:]] == [0, 1, 0, 1]


@pytest.fixture(scope="module")
def unbroken(quick, tmp_path_factory):
    """(settings, folder, result) of a run in two phases of 30 steps each."""
    folder = tmp_path_factory.mktemp("unbroken")
    teacher = save(bitlab.models.load_model("sample", "sst2"), folder / "teacher")
    given = {"method": "binarybert", "schedule": "W1A4", "teacher": str(teacher), "max_steps": 60, **TINY}
    return given, folder / "run", run(Experiment("sst2", **given), folder / "run", report=silent)


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
            run(Experiment("sst2", **given), "broken", report=silent)
    seen = []
    begins = lambda self, args, state, *_, **__: seen.append(state.global_step)  # noqa: E731
    monkeypatch.setattr(stages.ShowProgress, "on_train_begin", begins)
    result = run(Experiment("sst2", **given), "broken", report=silent)
    assert seen == ([25, 0] if phase == 1 else [25, 25])
    assert result["stages"][1]["score"] == whole["stages"][1]["score"] and result["stages"][1]["steps"] == 60
    ours, theirs = (bitlab.models.load_model(run_ / "W1A4", "sst2").state_dict() for run_ in (cheap / "broken", folder))
    assert same(ours, theirs)


@pytest.mark.parametrize("kind", RIVALS)
def test_mixed_precision(kind):
    """Under bf16 autocast the types of all products fit, forward and backward."""
    model, inputs = binary(kind=kind), batch(pad=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.train()(**inputs).logits
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert logits.isfinite().all() and logits.std() > 1e-2
