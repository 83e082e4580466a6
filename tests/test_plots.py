"""Figures show what they are given; widgets draw statically and live; recorded statistics are those of the
tensors."""

import math
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib import pyplot as plt
from tiny_models import batch, tiny, warm_up
from torch import nn
from transformers import TrainingArguments

from bitlab import DistillationTrainer, binarize
from bitlab.attention import binary_attention
from bitlab.binarizers import elastic
from bitlab.course import explore, plots
from bitlab.course.probes import (
    TENSORS,
    attend,
    attention_calls,
    follow,
    one_kind,
    readable,
    record,
    snapshot,
    table,
    training_losses,
)
from bitlab.errors import BitlabError
from bitlab.layers import Binarizer, BinaryEmbedding, BinaryLinear, ElasticBinarizer


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
    cycle = [(style["color"], style["linestyle"]) for style in plt.rcParams["axes.prop_cycle"]]
    assert {(look["color"].lstrip("#"), look["linestyle"]) for look in plots.LOOK.values()} == {
        (color.lstrip("#"), line) for color, line in cycle
    }


def test_histogram_marks_levels_shares_alpha_and_beta():
    x = torch.randn(200, 16)
    after = elastic(x - 0.5, torch.tensor(0.7))
    ax = plots.histogram(x, after, alpha=0.7, beta=torch.full((16,), 0.5))
    levels = ax.containers[-1]
    assert [round(bar.get_x() + bar.get_width() / 2, 3) for bar in levels] == [-0.7, 0.7]
    share = (after > 0).float().mean()
    assert f"{share:.0%}" in {text.get_text() for text in ax.texts}
    labels = ax.get_legend_handles_labels()[1]
    assert {"alpha = 0.7", "beta = 0.5"} <= set(labels)
    assert ax.get_xlabel() and ax.get_ylabel()


@pytest.mark.parametrize(("bits", "signed"), [(1, True), (1, False), (2, True), (2, False)])
def test_surrogate_is_the_gradient_of_elastic(bits, signed):
    ax = plots.step_and_surrogate(bits, signed, alpha=0.5, beta=0.25)
    forward, gradient = (line for line in ax.lines if not line.get_label().startswith("_"))
    x = torch.tensor(forward.get_xdata())
    expected = elastic(x - 0.25, torch.tensor(0.5), bits, signed)
    assert torch.equal(torch.tensor(forward.get_ydata()), expected)
    low, high = {(1, True): (-0.5, 0.5), (1, False): (0, 0.5), (2, True): (-1.0, 0.5), (2, False): (0, 1.5)}[
        bits, signed
    ]
    inside = (x - 0.25 > low + 1e-3) & (x - 0.25 < high - 1e-3)
    outside = (x - 0.25 < low - 1e-3) | (x - 0.25 > high + 1e-3)
    g = torch.tensor(gradient.get_ydata())
    assert (g[inside] == 1).all() and (g[outside] == 0).all()


def test_pair_puts_both_in_one_figure():
    axes = plots.pair(torch.rand(100, 4), alpha=torch.tensor(0.5, requires_grad=True), signed=False)
    assert axes[0].figure is axes[1].figure
    assert [round(bar.get_x() + bar.get_width() / 2, 3) for bar in axes[0].containers[-1]] == [0, 0.5]


def test_heatmap_is_labelled_by_its_tokens():
    ax = plots.heatmap(torch.rand(3, 3), ["a", "b", "c"])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "c"]
    plots.heatmap(torch.zeros(2, 2))  # an empty head is a picture too


def test_bars_show_means_spread_baseline_and_control():
    scores = {"float": 0.9, "BiT": [0.8, 0.9, 0.7], "sign": [0.5, 0.6]}
    ax = plots.bars(scores, baseline="float", control="sign", chance=0.5)
    bars = ax.patches
    assert [round(bar.get_height(), 3) for bar in bars] == [0.9, 0.8, 0.55]
    assert colors.to_hex(bars[0].get_facecolor()) == plots.COLORS["float"].lower()
    assert bars[2].get_hatch() and not bars[1].get_hatch()
    whiskers = ax.collections[0].get_segments()[0][:, 1]
    assert whiskers.tolist() == pytest.approx([0.7, 0.9])


def test_curves_take_values_or_steps_and_draw_into_a_given_axes():
    _, ax = plt.subplots()
    same = plots.curves({"student": [3, 2], "teacher": ([10, 20], [1, 1])}, {"teacher": "teacher"}, ax=ax)
    assert same is ax
    assert ax.lines[1].get_xdata().tolist() == [10, 20]
    assert ax.lines[1].get_color() == plots.COLORS["teacher"]


def test_alt_text_is_what_was_said_or_what_is_written_in_the_figure():
    ax = plots.curves({"student": [3, 2]})
    figure = plots.figure_of(ax)
    assert "step" in plots.describe(figure) and "student" in plots.describe(figure)
    plots.show([ax], alt="The loss falls\nfrom 3 to 2.")
    assert plots.describe(figure) == "The loss falls from 3 to 2."
    plots.show([ax])  # a helper that has said it is not overruled
    assert plots.describe(figure) == "The loss falls from 3 to 2."


def test_a_picture_is_what_savefig_would_draw():
    figure, file = plots.figure_of(plots.curves({"student": [3, 2]})), BytesIO()
    figure.savefig(file)
    assert np.array_equal(*(plt.imread(BytesIO(png)) for png in (file.getvalue(), plots.picture(figure))))


def test_alt_text_reaches_the_notebook():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        plots.use_style()
        data, metadata = shell.display_formatter.format(plots.figure_of(plots.curves({"student": [3, 2]})))
        assert "image/png" in data
        assert "student" in metadata["image/png"]["alt"]
    finally:
        InteractiveShell.clear_instance()


# Widgets


class Draw:
    """A draw function that remembers its calls."""

    def __init__(self):
        self.calls = []

    __name__ = "draw"

    def __call__(self, **values):
        self.calls.append(values)
        if values.get("alpha") == 3:
            raise ValueError("three is too much")
        return plots.curves({"line": [0, values.get("alpha", 1)]})


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


@pytest.fixture
def live(monkeypatch, shown):
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.delenv("BITLAB_HEADLESS", raising=False)
    return shown


CONTROLS = {
    "alpha": (0, 3, 1, 2),
    "beta": (0.0, 1.0, 0.1, 0.5),
    "set": ["signed", "unsigned"],
    "on": True,
    "text": "hi",
}


DEFAULTS = {"alpha": 2, "beta": 0.5, "set": "signed", "on": True, "text": "hi"}


def test_headless_draws_once_at_the_defaults(shown, monkeypatch):
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.setenv("BITLAB_HEADLESS", "1")
    draw = Draw()
    explore.explore(draw, **CONTROLS)
    assert draw.calls == [DEFAULTS]
    assert [type(thing).__name__ for thing in shown.objects] == ["Figure"]
    assert not plt.get_fignums(), "a figure left open is shown twice"


def test_under_pytest_every_other_value_is_tried_and_none_is_shown(shown):
    draw = Draw()
    explore.explore(draw, **CONTROLS | {"alpha": (0, 4, 1, 2)})
    tried = [{"alpha": 0}, {"alpha": 4}, {"beta": 0.0}, {"beta": 1.0}, {"set": "unsigned"}, {"on": False}]
    tried += [{"text": ""}, {"text": "not " * 600}, {"text": draw.calls[-1]["text"]}]
    assert draw.calls == [DEFAULTS, *(DEFAULTS | values for values in tried)]
    assert "🎬?" in draw.calls[-1]["text"], "half an emoji is a question mark"
    assert [type(thing).__name__ for thing in shown.objects] == ["Figure"]
    assert not plt.get_fignums()


def test_under_pytest_a_text_that_cannot_be_drawn_is_an_error(shown):
    def careful(text):
        ax = plt.subplots()[1]
        ax.set_title(text[:20], parse_math=False)
        return ax

    def careless(text):
        _, ax = plt.subplots()
        ax.set_title("$\\frac$" if text.startswith("🎬") else "fine")  # fails when it is drawn, not when it is made
        return ax

    explore.explore(careful, text="hi")
    with pytest.raises(ValueError, match="frac"):
        explore.explore(careless, text="hi")


def test_headless_lets_errors_through(shown):
    with pytest.raises(ValueError, match="too much"):
        explore.explore(Draw(), alpha=(0, 3, 1, 3))
    with pytest.raises(ValueError, match="too much"):
        explore.explore(Draw(), alpha=(0, 3, 1, 1))
    with pytest.raises(BitlabError, match="returned nothing"):
        explore.explore(lambda: None)


def test_live_controls_redraw_in_place_and_show_errors(live):
    draw = Draw()
    explore.explore(draw, **CONTROLS)
    _, box, figure = live.objects
    assert draw.calls == [{"alpha": 2, "beta": 0.5, "set": "signed", "on": True, "text": "hi"}]
    names = [type(field).__name__ for field in box.children]
    assert names == ["IntSlider", "FloatSlider", "Dropdown", "Checkbox", "Text"]
    assert [field.description for field in box.children] == ["alpha", "beta", "set", "on", "text"]

    box.children[0].value = 1
    assert draw.calls[-1]["alpha"] == 1
    assert type(live.updates[-1]) is type(figure)
    box.children[2].value = "unsigned"
    assert draw.calls[-1]["set"] == "unsigned"
    box.children[0].value = 3
    assert "three is too much" in live.updates[-1].data
    box.children[0].value = 0
    assert type(live.updates[-1]) is type(figure)


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
    model(x)
    assert list(seen) == ["0.input_binarizer", "2.input_binarizer"]
    first = seen["0.input_binarizer"]
    assert len(first) == 2
    assert torch.equal(first[0].tensor, x)
    assert first[0].mean == pytest.approx(x.mean().item())
    assert first[0].std == pytest.approx(x.std(correction=0).item())
    assert first[0].positive == pytest.approx((x >= 0).float().mean().item())
    assert first[0].alpha == pytest.approx(2 * x.abs().mean().item(), rel=1e-5)
    p = first[0].positive
    assert first[0].entropy == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p))
    assert len(table(seen).splitlines()) == 3


def test_record_takes_linear_layers_names_and_errors():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with record(model, kinds=nn.Linear, names="1") as seen:
        model(torch.ones(2, 8))
    assert list(seen) == ["1"] and seen["1"][0].alpha is None and seen["1"][0].tensor is None
    with pytest.raises(BitlabError, match=r"no Binarizer.*binarize"), record(model):
        pass


def test_record_is_undone_after_an_error():
    binarizer = ElasticBinarizer(4)

    def broken():
        with record(binarizer):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        broken()
    assert not binarizer._forward_hooks


def test_entropy_of_constant_and_balanced_bits():
    assert snapshot(torch.ones(10)).entropy == 0
    assert snapshot(torch.tensor([1.0, -1.0])).entropy == 1


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("bert.encoder.layer.0.attention.self.query.input_binarizer", "layer 0 query input"),
        ("bert.encoder.layer.11.attention.self.query_binarizer", "layer 11 query"),
        ("bert.encoder.layer.1.attention.output.dense.input_binarizer", "layer 1 out-projection input"),
        ("intermediate.dense.input_binarizer", "FFN-1 input"),
        ("output.dense.input_binarizer", "FFN-2 input"),
        ("attention.self.probs_binarizer", "probs"),
        ("bert.pooler.dense.input_binarizer", "pooler input"),
    ],
)
def test_readable_names_fit_into_a_figure(name, short):
    assert readable(name) == short


def test_runs_that_score_alike_have_no_spread():
    ax = plots.bars({"teacher": [0.8424559654370223] * 3, "student": [0.1, 0.1, 0.1]})
    assert len(ax.patches) == 2


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
    everything = in_one_bit(binarize(tiny()))
    assert sorted(name for names in kinds.values() for name in names) == sorted(
        everything - {"bert.pooler.dense.input_binarizer"}
    )


def in_one_bit(model):
    binarizers = {name for name, m in model.named_modules() if isinstance(m, Binarizer) and m.bits == 1}
    weights = {
        name
        for name, m in model.named_modules()
        if isinstance(m, BinaryLinear | BinaryEmbedding) and m.weight_bits == 1
    }
    return binarizers | weights


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
