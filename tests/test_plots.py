"""Figures show what they are given; widgets draw statically and live; recorded statistics are those of the
tensors."""

import math
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import colors
from matplotlib import pyplot as plt
from tiny_models import batch, tiny, warm_up
from torch import nn
from transformers import TrainingArguments

from bitlab import DistillationTrainer, binarize
from bitlab.attention import binary_attention
from bitlab.binarizers import elastic
from bitlab.course import explore, plots
from bitlab.course.figures import parts
from bitlab.course.probes import (
    TENSORS,
    attend,
    attention_calls,
    follow,
    one_kind,
    readable,
    record,
    snapshot,
    training_losses,
)
from bitlab.errors import BitlabError
from bitlab.layers import Binarizer, BinaryLinear


@pytest.fixture(autouse=True)
def _style():
    plots.use_style()
    yield
    plt.close("all")


# Figures


def test_colours_survive_greyscale_and_lines_differ():
    greys = sorted(np.dot(colors.to_rgb(color), [0.299, 0.587, 0.114]) for color in plots.COLORS.values())
    assert min(b - a for a, b in pairwise(greys)) > 0.12
    assert len({look["linestyle"] for look in plots.LOOK.values()}) == 4


@pytest.mark.parametrize(("signed", "levels"), [(True, [-0.7, 0.7]), (False, [0, 0.7])])
def test_histogram_marks_the_levels(signed, levels):
    axes = plots.pair(torch.randn(100, 4), alpha=torch.tensor(0.7, requires_grad=True), signed=signed)
    assert [round(bar.get_x() + bar.get_width() / 2, 3) for bar in axes[0].containers[-1]] == levels


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"),
    [(1, True, -0.5, 0.5), (1, False, 0, 0.5), (2, True, -1.0, 0.5), (2, False, 0, 1.5)],
)
def test_surrogate_is_the_gradient_of_elastic(bits, signed, low, high):
    ax = plots.step_and_surrogate(bits, signed, alpha=0.5, beta=0.25)
    forward, gradient = (line for line in ax.lines if not line.get_label().startswith("_"))
    x = torch.tensor(forward.get_xdata())
    expected = elastic(x - 0.25, torch.tensor(0.5), bits, signed)
    assert torch.equal(torch.tensor(forward.get_ydata()), expected)
    inside = (x - 0.25 > low + 1e-3) & (x - 0.25 < high - 1e-3)
    outside = (x - 0.25 < low - 1e-3) | (x - 0.25 > high + 1e-3)
    g = torch.tensor(gradient.get_ydata())
    assert (g[inside] == 1).all() and (g[outside] == 0).all()


def test_bars_show_means_spread_and_control():
    scores = {"BiT": [0.8, 0.9, 0.7], "float": [0.8424559654370223] * 3, "sign": [0.5, 0.6]}
    ax = plots.bars(scores, baseline="float", control="sign", chance=0.5)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.8, 0.8424559654370223, 0.55])
    assert ax.patches[2].get_hatch() and not ax.patches[1].get_hatch()
    (whisker,) = ax.collections[0].get_segments()
    assert whisker[:, 1].tolist() == pytest.approx([0.7, 0.9])


def test_parts_of_figures_stand_where_their_numbers_are():
    _, axes = plt.subplots(1, 3)
    parts.seeds(axes[0], {"one": [0.5], "two seeds": [0.2, 0.4]}, [{}, plots.CONTROL])
    assert [bar.get_height() for bar in axes[0].patches] == pytest.approx([0.5, 0.3])
    assert [list(line.get_ydata()) for line in axes[0].lines] == [[0.2, 0.4]]
    parts.groups(axes[1], {"a": [1, 2], "b": [3, 4], "c": [5, 6]}, [{}, {}, plots.CONTROL])
    bars = sorted(axes[1].patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == [1, 3, 5, 2, 4, 6]
    assert all(a.get_x() + a.get_width() < b.get_x() for a, b in pairwise(bars))
    parts.lying(axes[2], {"float": 4.0, "packed": 1.0}, [{}, {}], ["four", "one"])
    assert [(text.get_text(), text.xy) for text in axes[2].texts] == [("four", (4, 0)), ("one", (1, 1))]
    assert plots.told({"sign": [0.4, 0.6], "bits": torch.tensor(1.0)}, ".1f") == "sign 0.5; bits 1.0"


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_a_page_is_shown_rich_and_as_text(kind):
    data, _ = DisplayFormatter().format(plots.Page("**rich**", "plain", kind))
    assert data == {f"text/{kind}": "**rich**", "text/plain": "plain"}


def test_alt_text_is_said_or_read_off_and_reaches_the_notebook():
    figure = plots.figure_of(plots.curves({"student": [3, 2], "teacher": ([10, 20], [1, 1])}))
    assert "step" in plots.describe(figure) and "student" in plots.describe(figure)
    shell = InteractiveShell.instance()
    try:
        plots.use_style()
        for said in ("The loss falls\nfrom 3 to 2.", ""):  # what has been said is not overruled
            plots.show([figure.axes[0]], alt=said)
            data, metadata = shell.display_formatter.format(figure)
            assert "image/png" in data and metadata["image/png"]["alt"] == "The loss falls from 3 to 2."
    finally:
        InteractiveShell.clear_instance()


def test_a_picture_is_what_savefig_would_draw():
    figure, file = plots.figure_of(plots.curves({"student": [3, 2]})), BytesIO()
    figure.savefig(file)
    assert np.array_equal(*(plt.imread(BytesIO(png)) for png in (file.getvalue(), plots.picture(figure))))


# Widgets


class Draw:
    """A draw function that remembers its calls, and fails where alpha is 3."""

    __name__ = "draw"

    def __init__(self):
        self.calls = []

    def __call__(self, **values):
        self.calls.append(values)
        if values["alpha"] == 3:
            raise ValueError("three is too much")
        return plots.curves({"line": [0, values["alpha"]]})


class Shown:
    """Stands in for IPython's display: collects what is shown, and what it is later replaced by."""

    def __init__(self):
        self.objects, self.updates = [], []

    def __call__(self, thing, display_id=None):
        self.objects.append(thing)
        return self

    def update(self, thing):
        self.updates.append(thing)


@pytest.fixture
def shown(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(explore, "display", shown)
    return shown


CONTROLS = {
    "alpha": (0, 4, 1, 2),
    "beta": (0.0, 1.0, 0.1, 0.5),
    "set": ["signed", "unsigned"],
    "on": True,
    "text": "hi",
}
DEFAULTS = {"alpha": 2, "beta": 0.5, "set": "signed", "on": True, "text": "hi"}
OTHERS = [{"alpha": 0}, {"alpha": 4}, {"beta": 0.0}, {"beta": 1.0}, {"set": "unsigned"}, {"on": False}]


def test_headless_draws_once_and_under_pytest_every_other_value_too(shown, monkeypatch):
    draw, alone = Draw(), Draw()
    explore.explore(draw, **CONTROLS)
    *others, odd = draw.calls[1:]
    assert others == [DEFAULTS | value for value in [*OTHERS, {"text": ""}, {"text": "not " * 600}]]
    assert "🎬?" in odd["text"], "half an emoji is a question mark"
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.setenv("BITLAB_HEADLESS", "1")
    explore.explore(alone, **CONTROLS)
    assert draw.calls[:1] == alone.calls == [DEFAULTS]
    assert [type(thing).__name__ for thing in shown.objects] == ["Figure"] * 2
    assert not plt.get_fignums(), "a figure left open is shown twice"


def title(text, parse):
    _, ax = plt.subplots()
    ax.set_title(text, parse_math=parse)  # wrong mathtext fails when it is drawn, not when it is made
    return ax


def test_headless_lets_errors_through(shown):
    for alpha in ((0, 3, 1, 3), (0, 3, 1, 1)):
        with pytest.raises(ValueError, match="too much"):
            explore.explore(Draw(), alpha=alpha)
    with pytest.raises(BitlabError, match="returned nothing"):
        explore.explore(lambda: None)
    explore.explore(lambda text: title(text[:20], parse=False), text="hi")
    with pytest.raises(ValueError, match="frac"):
        explore.explore(lambda text: title("$\\frac$" if "🎬" in text else "fine", parse=True), text="hi")


def test_live_controls_redraw_in_place_and_show_errors(shown, monkeypatch):
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.delenv("BITLAB_HEADLESS", raising=False)
    draw = Draw()
    explore.explore(draw, **CONTROLS)
    _, box, figure = shown.objects
    assert draw.calls == [DEFAULTS]
    fields = {field.description: field for field in box.children}
    names = {name: type(field).__name__ for name, field in fields.items()}
    assert names == dict(zip(CONTROLS, ("IntSlider", "FloatSlider", "Dropdown", "Checkbox", "Text"), strict=True))
    for name, value, works in (("alpha", 1, True), ("set", "unsigned", True), ("alpha", 3, False), ("alpha", 0, True)):
        fields[name].value = value
        assert draw.calls[-1][name] == value
        assert (type(shown.updates[-1]) is type(figure)) is works
        assert works or "three is too much" in shown.updates[-1].data


@pytest.mark.parametrize("control", [3, (0, 1), (0, 1, 0.1, 5), (0, 1, 0, 0), [], None])
def test_what_is_no_control_is_refused(control):
    with pytest.raises(BitlabError, match="describes no control"):
        explore.explore(Draw(), alpha=control)


# Activations


def test_record_sees_every_binarizer_call_and_leaves_no_trace():
    model = nn.Sequential(BinaryLinear(8, 8), nn.ReLU(), BinaryLinear(8, 4, signed=False)).train()
    x = torch.randn(32, 8) + 1
    with record(model, keep=True) as seen:
        model(x)
        model(x)
    with pytest.raises(KeyError), record(model):
        raise KeyError("inside")
    assert not any(module._forward_hooks for module in model.modules())
    assert list(seen) == ["0.input_binarizer", "2.input_binarizer"]
    first, _ = seen["0.input_binarizer"]
    assert torch.equal(first.tensor, x)
    assert first.mean == pytest.approx(x.mean().item())
    assert first.std == pytest.approx(x.std(correction=0).item())
    p = first.positive
    assert p == pytest.approx((x >= 0).float().mean().item())
    assert first.alpha == pytest.approx(2 * x.abs().mean().item(), rel=1e-5)
    assert first.entropy == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p))
    assert snapshot(torch.ones(10)).entropy == 0


def test_record_takes_linear_layers_names_and_errors():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with record(model, kinds=nn.Linear, names="1") as seen:
        model(torch.ones(2, 8))
    assert list(seen) == ["1"] and seen["1"][0].alpha is None and seen["1"][0].tensor is None
    with pytest.raises(BitlabError, match=r"no Binarizer.*binarize"), record(model):
        pass


def test_readable_names_fit_into_a_figure_and_differ():
    names = [name for name, module in binarize(tiny()).named_modules() if isinstance(module, Binarizer)]
    assert len({readable(name) for name in names}) == len(names) == 21
    assert max(len(readable(name)) for name in names) < 30
    assert readable("bert.encoder.layer.11.attention.output.dense.input_binarizer") == "layer 11 out-projection input"


def test_follow_keeps_what_tensors_were_at_every_call_in_training():
    layer = nn.Linear(2, 1)
    with follow(layer, weight=layer.weight) as seen:
        for step in range(3):
            layer.eval()(torch.ones(1, 2))  # an evaluation is no step
            layer.train()(torch.ones(1, 2))
            layer.weight.data.fill_(step)
    layer(torch.ones(1, 2))
    assert seen["weight"].shape == (4, 1, 2)
    assert seen["weight"][1:, 0, 0].tolist() == [0, 1, 2]
    with follow(layer, every=2, weight=layer.weight) as seen:
        for step in range(4):
            layer.train()(torch.ones(1, 2))
            layer.weight.data.fill_(step)
    assert seen["weight"][:, 0, 0].tolist() == [2, 1, 3]


def test_a_model_attends_with_the_readers_function_mask_or_none():
    model = tiny()
    tokens = {"input_ids": torch.tensor([[2, 7, 8, 3]])}

    def first_only(module, q, k, v, mask, scaling, **_):
        probs = (0 * (q @ k.mT) * scaling + mask).softmax(-1)
        return (probs @ v).transpose(1, 2), probs

    masked = tokens | {"attention_mask": torch.tensor([[1, 1, 0, 0]])}
    attend(model, first_only)
    for given, expected in ((tokens, [0.25] * 4), (masked, [0.5, 0.5, 0, 0])):
        probs = model(**given, output_attentions=True).attentions[0]
        assert probs[0, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("binary", [True, False])
def test_attention_calls_are_what_each_layer_asks_and_leave_no_trace(binary):
    model = warm_up(binarize(tiny())) if binary else tiny()
    inputs = batch(pad=2)
    before, implementation = model(**inputs).logits, model.config._attn_implementation
    calls = attention_calls(model, inputs)
    assert [call.module for call in calls] == [layer.attention.self for layer in model.bert.encoder.layer]
    with record(model, kinds=nn.Linear, names="attention.output.dense", keep=True) as seen:
        model(**inputs)
    for call, (snap,) in zip(calls, seen.values(), strict=True):
        assert call.query.shape == call.key.shape == call.value.shape == (3, 2, 9, 8)
        context = binary_attention(*call)[0]
        torch.testing.assert_close(context.flatten(2), snap.tensor, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(**inputs).logits, before)


def test_kinds_of_tensors_share_out_a_binary_bert():
    """Each tensor of layers and word table is of one kind; alone, that kind is at one bit and the rest at 32."""
    kinds = {kind: in_one_bit(one_kind(tiny(), kind)) for kind in TENSORS}
    assert kinds["nothing (ReLU for GELU)"] == set()
    assert all(names for kind, names in kinds.items() if not kind.startswith("nothing"))
    everything = in_one_bit(binarize(tiny())) - {"bert.pooler.dense.input_binarizer"}
    assert sorted(name for names in kinds.values() for name in names) == sorted(everything)


def in_one_bit(model):
    """Names of binarizers, linear layers and embeddings."""
    return {name for name, m in model.named_modules() if 1 in (getattr(m, "bits", 0), getattr(m, "weight_bits", 0))}


def test_training_losses_are_the_trainers_unrounded(tmp_path, capsys):
    rows = [{name: x[0] for name, x in batch(size=1, seed=seed).items()} for seed in range(12)]
    quietly = {"disable_tqdm": True, "report_to": [], "save_strategy": "no", "logging_steps": 1}
    arguments = TrainingArguments(tmp_path, max_steps=4, per_device_train_batch_size=3, use_cpu=True, **quietly)
    student = binarize(tiny())
    trainer = DistillationTrainer(student, tiny(), arguments, train_dataset=rows)
    before = student.classifier.weight.clone()
    losses = training_losses(trainer)
    assert losses == pytest.approx([line["loss"] for line in trainer.state.log_history if "loss" in line], abs=1e-4)
    assert len(losses) == 4 and not torch.equal(student.classifier.weight, before)
    assert capsys.readouterr().out == ""
