"""The packed model: the float model's results from bits, the file, and what becomes of a damaged one."""

import copy
import io
import json
import math
import random
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, HEADS, SAME_ORDER, SIZES, WORDS, batch, outputs, python, tiny, warm_up
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from bitlab import BitConfig, BitlabError, binarize, set_precision
from bitlab.compiled import torch_threads
from bitlab.packed import backends, is_fused, load_packed, pack, save_packed
from bitlab.packed.checkpoint import pack_folder
from bitlab.packed.encoder import FusedLayer
from bitlab.packed.format import metadata
from bitlab.packed.layers import PackedEmbedding, PackedLinear

BACKENDS = backends.available()
GRID = [(architecture, head) for architecture in CONFIGS for head in ("sequence", "span", "bare")]


def binary(architecture="bert", head="sequence", bits=1, **options):
    return warm_up(binarize(tiny(architecture, head, **options), BitConfig(1, bits)))


def equal(ours, theirs):
    assert len(ours) > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if SAME_ORDER else 1e-4, equal_nan=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed folder; tests that change it copy it."""
    path = tmp_path_factory.mktemp("packed")
    save_packed(binary(), path)
    return path


# ------------------------------------------------------------------------------------------------ same results


def same_on_every_backend(model, *batches):
    packed = pack(model)
    assert is_fused(packed)
    for inputs in batches:
        expected = outputs(model, **inputs)
        for backend in BACKENDS:
            with backends.use(backend):
                equal(outputs(packed, **inputs), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("architecture", "head"), GRID)
def test_packed_gives_the_float_models_results(architecture, head, bits):
    model = binary(architecture, head, bits)
    same_on_every_backend(model, batch(pad=2), batch(size=1, length=1), batch(size=2, length=29))


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 7, 16, 32, 33, 64]),
    inner=st.integers(1, 70),
    size=st.integers(1, 3),
    length=st.integers(1, 40),
    data=st.data(),
)
def test_any_size(heads, width, inner, size, length, data):
    options = {"hidden_size": heads * width, "num_attention_heads": heads, "intermediate_size": inner}
    mask = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)))
    inputs = batch(size, length, seed=3) | {"attention_mask": mask.repeat(size, 1)}
    same_on_every_backend(binary(num_hidden_layers=1, max_position_embeddings=40, **options), inputs)


def test_hidden_states_attentions_and_scores():
    model = binary()
    packed, inputs = pack(model), batch(pad=2)
    for name, count in (("hidden_states", 3), ("attentions", 2)):
        with torch.no_grad():
            ours, theirs = (each(**inputs, **{f"output_{name}": True}) for each in (packed, model))
        assert len(ours[name]) == count
        equal([*ours[name], ours.logits], [*theirs[name], theirs.logits])
    for name in ("attention_scores", "attention_inputs"):
        ours, theirs = [], []
        outputs(packed, **inputs, **{name: ours})
        outputs(model, **inputs, **{name: theirs})
        assert len(ours) == 2
        equal(ours, theirs)


def test_independent_of_padding_batch_and_threads():
    packed, one = pack(binary("roberta")), batch(size=1, length=9)
    (alone,) = outputs(packed, **one)
    padded = {"input_ids": torch.ones(4, 13, dtype=torch.long), "attention_mask": torch.zeros(4, 13, dtype=torch.long)}
    padded["input_ids"][2, :9], padded["attention_mask"][2, :9] = one["input_ids"], 1
    padded["input_ids"][0, :5], padded["attention_mask"][:, 0] = 7, 1
    # the float head is torch's own, whose sums may depend on the batch: a few units in the last place
    torch.testing.assert_close(outputs(packed, **padded)[0][2:3], alone, atol=1e-6, rtol=1e-6)
    hidden = outputs(packed.base_model, **padded)[0][2, :9]
    equal([hidden], [outputs(packed.base_model, **one)[0][0]])
    for threads in (1, 2, 3):
        with torch_threads(threads):
            equal([outputs(packed.base_model, **padded)[0][2, :9]], [hidden])


@pytest.mark.parametrize("kernel", backends.COMPILED)
def test_padding_is_left_out(kernel):
    """Every token as the float model has it, 0 behind the sentences; a row without any token counts as full."""
    if kernel not in backends.available():
        pytest.skip("not on this processor")
    model = binary(max_position_embeddings=40)
    many = batch(size=64, length=37)
    ends = torch.arange(64) * 7 % 38
    many["attention_mask"] = (torch.arange(37) < ends[:, None]).long()
    tokens = many["attention_mask"].bool() | (ends == 0)[:, None]
    (expected,) = outputs(model.base_model, **many)[:1]
    packed = pack(model).base_model
    for threads in (1, 2):
        with backends.use(kernel), torch_threads(threads):
            (found,) = outputs(packed, **many)[:1]
        equal([found[tokens]], [expected[tokens]])
        assert (found[:, 20:][~tokens[:, 20:] & (ends < 20)[:, None]] == 0).float().mean() > 0.5


@pytest.mark.parametrize("kernel", backends.COMPILED)
def test_threads_that_share_the_examples_find_the_same(kernel):
    """Groups of 42 examples: two threads and three, 130 examples long, have one each and more."""
    if kernel not in backends.available():
        pytest.skip("not on this processor")
    packed, many = pack(binary("bert")).base_model, batch(size=130, length=3)
    many["attention_mask"][::2, 2] = 0
    with backends.use(kernel), torch_threads(1):
        (alone, *_) = outputs(packed, **many)
    for threads in (2, 3):
        with backends.use(kernel), torch_threads(threads):
            equal([outputs(packed, **many)[0]], [alone])


# ------------------------------------------------------------------------------------------ whatever it is given

LOW = torch.finfo(torch.float32).min


def outcome(model, **inputs):
    """Its outputs, or the kind of error and what it says."""
    try:
        return outputs(model, **inputs)
    except Exception as error:
        return type(error), str(error)


def same_outcome(packed, model, **inputs):
    ours, theirs = outcome(packed, **inputs), outcome(model, **inputs)
    if isinstance(theirs[0], torch.Tensor):
        equal(ours, theirs)
    else:
        assert ours == theirs


MASKS = {
    "none": lambda n: None,
    "2-D float": lambda n: torch.ones(3, n).tril(n - 3),
    "2-D bool": lambda n: torch.ones(3, n).tril(n - 3).bool(),
    "2-D int32, nothing": lambda n: torch.zeros(3, n, dtype=torch.int32),
    "left padding": lambda n: torch.ones(3, n, dtype=torch.long).triu(1),
    "4-D additive": lambda n: torch.zeros(3, 1, 1, n).index_fill(-1, torch.tensor([0, n - 1]), LOW),
    "4-D causal": lambda n: torch.full((3, 1, n, n), LOW).triu(1),
    "4-D, a row of nothing": lambda n: torch.zeros(3, 1, n, n).index_fill(2, torch.tensor([1]), LOW),
    "4-D, infinite": lambda n: torch.zeros(3, 1, n, n).masked_fill(torch.eye(n) > 0, -torch.inf),
    "4-D, all infinite": lambda n: torch.full((3, 1, n, n), -torch.inf),
    "4-D, a head each": lambda n: torch.randn(3, 2, n, n),
    "4-D, a query each": lambda n: torch.randn(1, 1, n, 1),
    "4-D of one": lambda n: torch.full((1, 1, 1, 1), 0.5),
    "4-D, shared": lambda n: torch.randn(1, 1, 1, n).expand(3, 1, n, n),
    "4-D, keys apart": lambda n: torch.randn(3, 1, n, 2 * n)[..., ::2],
    "4-D transposed": lambda n: torch.randn(3, 1, n, n).mT,
    "4-D, weak": lambda n: torch.zeros(3, 1, 1, n).index_fill(-1, torch.tensor([2]), -5.0),
    "4-D, all low": lambda n: torch.full((3, 1, 1, n), -65504.0),
    "4-D bool": lambda n: torch.ones(3, 1, n, n).tril().bool(),
    "4-D int": lambda n: torch.ones(3, 1, n, n).tril().long(),
    "4-D half": lambda n: torch.zeros(3, 1, n, n).masked_fill(torch.eye(n) > 0, -65504.0).half(),
    "4-D double": lambda n: torch.zeros(3, 1, n, n).double(),
    "of another length": lambda n: torch.zeros(3, 1, n, n + 1),
    "of another batch": lambda n: torch.zeros(2, 1, n, n),
    "no number": lambda n: torch.full((3, 1, n, n), torch.nan),
}


@pytest.fixture(scope="module", params=[1, 2, 4], ids="W1A{}".format)
def pair(request):
    model = binary(head="span", bits=request.param)  # whose head hears of every number; a pooler of bits does not
    return pack(model), model


@pytest.mark.parametrize("name", MASKS)
def test_masks(name, pair):
    torch.manual_seed(3)
    for length in (9, 20):
        mask = MASKS[name](length)
        same_outcome(*pair, **batch(length=length) | {"attention_mask": mask})


def test_a_mask_used_again_and_changed(pair):
    """For more rows, for fewer, and after a change in place: what was derived from it is derived anew."""
    packed, model = pair
    mask = torch.zeros(1, 1, 1, 9)
    for size in (1, 5, 2):
        same_outcome(packed, model, **batch(size) | {"attention_mask": mask})
    before = outputs(packed, **batch(2) | {"attention_mask": mask})
    mask[..., 4:] = LOW
    same_outcome(packed, model, **batch(2) | {"attention_mask": mask})
    assert not torch.equal(before[0], outputs(packed, **batch(2) | {"attention_mask": mask})[0])


def test_ids_of_any_type_and_none(pair):
    ids = batch()["input_ids"]
    for changed in (
        *(ids.to(kind) for kind in (torch.int32, torch.int16, torch.uint8, torch.float32, torch.bool)),
        *(ids.index_fill(1, torch.tensor([2]), value) for value in (-1, -WORDS, WORDS, 2**40)),
        *(ids[:0], ids[:, :1], ids[:, :0], ids[:, ::2], ids.t().contiguous().t(), ids[0]),
        torch.ones(2, 33, dtype=torch.long),  # longer than the positions
    ):
        same_outcome(*pair, input_ids=changed)


def test_embeddings_that_are_no_numbers(pair):
    for value, row in ((torch.nan, 1), (torch.inf, 2), (-torch.inf, 0)):
        embeds = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
        embeds[row, 2, 5] = value
        same_outcome(*pair, inputs_embeds=embeds)


@pytest.fixture(params=["", "int8"], ids=["any", "int8"])
def backend(request):
    with backends.use(request.param):
        yield


@pytest.mark.usefixtures("backend")
def test_any_change_of_any_tensor_is_seen(pair):
    """Behind autograd's back, which no version number tells; the float model is changed alike where it has the same."""
    packed, model = map(copy.deepcopy, pair)
    theirs, before = model.state_dict(), outputs(packed, **batch(pad=2))
    for name, tensor in packed.state_dict().items():
        if tensor.dtype == torch.uint8 or name.endswith("weight_scale"):
            tensor.data.bitwise_not_() if tensor.dtype == torch.uint8 else tensor.data.mul_(0.5)
            changed = outputs(packed, **batch(pad=2))
            equal(changed, outputs(copy.deepcopy(packed), **batch(pad=2)))
            tensor.data.bitwise_not_() if tensor.dtype == torch.uint8 else tensor.data.mul_(2)
        else:
            for changed in (tensor, theirs[name]):
                changed.data.mul_(1.25).add_(0.01)
            same_outcome(packed, model, **batch(pad=2))
    assert not torch.equal(before[0], outputs(packed, **batch(pad=2))[0])


@pytest.mark.usefixtures("backend")
def test_loading_into_a_part(pair):
    packed, bits = copy.deepcopy(pair[0]), pair[0].config.quantization_config.activation_bits
    others = [pack(binary(head="span", bits=bits, seed=seed)) for seed in (1, 2)]
    before = outputs(packed, **batch())
    for name in ("layer.0.intermediate.dense", "layer.1.attention.self", "layer.1.output.LayerNorm"):
        for other, assign in zip(others, (False, True)):
            state = copy.deepcopy(other.bert.encoder.get_submodule(name).state_dict())
            packed.bert.encoder.get_submodule(name).load_state_dict(state, assign=assign)
            after = outputs(packed, **batch())
            equal(after, outputs(copy.deepcopy(packed), **batch()))
            assert not torch.equal(after[0], before[0])
            before = after
    for layer, theirs in zip(packed.bert.encoder.layer, other.bert.encoder.layer):
        layer.intermediate.dense = theirs.intermediate.dense  # a module in another's place
        equal(outputs(packed, **batch()), outputs(copy.deepcopy(packed), **batch()))
    packed.load_state_dict(other.state_dict())
    equal(outputs(packed, **batch()), outputs(other, **batch()))


def test_layers_taken_out_put_in_and_changed(pair):
    """As in experiments on depth; and a number of a module that is no tensor."""
    for change in (
        lambda layers: layers.pop(0),
        lambda layers: layers.append(copy.deepcopy(layers[0])),
        lambda layers: layers.insert(0, layers.pop(1)),
        lambda layers: setattr(layers[1].output.LayerNorm, "eps", 1.0),
        lambda layers: setattr(layers[0].attention.output.LayerNorm, "eps", 1.0),
        lambda layers: setattr(layers[1].attention.self, "scaling", 3.0),
    ):
        models = [copy.deepcopy(model) for model in pair]
        same_outcome(*models, **batch())
        for model in models:
            change(model.bert.encoder.layer)
        same_outcome(*models, **batch())


def test_a_tensor_that_lies_otherwise(pair):
    """Each begins where the first does."""
    models, wide = list(map(copy.deepcopy, pair)), torch.rand(32)
    for view in (wide[:16], wide[::2], wide[:8], wide.view(torch.bfloat16)[:16]):
        for model in models:
            model.bert.encoder.layer[1].output.LayerNorm.weight.data = view
        same_outcome(*models, **batch())


@pytest.mark.parametrize("names", [["intermediate.dense", "output.LayerNorm", "attention"], [""], ["output"]])
def test_hooks_inside_fire(names, pair):
    packed, seen = copy.deepcopy(pair[0]), []
    expected = outputs(packed, **batch())
    for name in names:
        module = packed.bert.encoder.layer[1].get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    equal(outputs(packed, **batch()), expected)
    assert set(seen) == set(names)


@pytest.mark.parametrize("bits", [1, 4])
def test_compiled_by_torch(bits):
    """Heads of 26 channels; the kernel runs outside of the graph."""
    packed = pack(binary(bits=bits, hidden_size=52, num_hidden_layers=1))
    expected = outputs(packed, **batch())
    compiled = torch.compile(packed, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch()).logits, expected[0])
    equal(outputs(packed, **batch()), expected)


def test_export_is_refused_in_one_line():
    packed, example = pack(binary(num_hidden_layers=1)), (batch()["input_ids"],)
    for strict in (True, False):
        with pytest.raises(Exception, match="can't be exported: export the latent model"):
            torch.export.export(packed, example, strict=strict)
    with pytest.raises(BitlabError, match="can't be exported"):  # or its answers to the example become constants
        torch.jit.trace(packed, example, strict=False)


def test_from_eight_threads(pair):
    packed, model = pair
    inputs = [batch(1 + i % 3, 1 + i, pad=i // 8) for i in range(16)]
    expected = [outputs(model, **each) for each in inputs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(lambda each: outputs(packed, **each), inputs * 4), expected * 4):
            equal(found, wanted)


def test_pickled(tmp_path):
    """By torch.save, here and into another process; what was prepared stays behind."""
    models = [pack(binary("bert", bits=2)), pack(binary("distilbert"))]
    expected = [outputs(packed, **batch(pad=2)) for packed in models]
    torch.save((models, batch(pad=2)), tmp_path / "models.pt")
    for packed, loaded in zip(models, torch.load(tmp_path / "models.pt", weights_only=False)[0], strict=True):
        assert list(map(type, loaded.modules())) == list(map(type, packed.modules()))
        assert not any(module.__dict__.get("sources") for module in loaded.modules())
    script = "import sys, torch, bitlab.packed; models, inputs = torch.load(sys.argv[1], weights_only=False); "
    script += "torch.save([model(**inputs).logits for model in models], sys.argv[2])"
    python("-c", script, tmp_path / "models.pt", tmp_path / "out.pt")
    equal(torch.load(tmp_path / "out.pt"), [first for first, *_ in expected])


# ----------------------------------------------------------------------------------------------- other devices


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device, with its values at hand."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        made = cls._make_wrapper_subclass(cls, inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with OtherDevice():
            return function(*args, **(kwargs or {}))


class OtherDevice(TorchDispatchMode):
    """A device that every machine has: "meta", here with values. Like others it refuses tensors of two devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        mine = {id(x.inner): x for x in tensors if isinstance(x, Elsewhere)}
        cpu = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim()]
        assert not mine or not cpu or function is torch.ops.aten.copy_.default, f"{function} of tensors on two devices"
        args, options = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs or {}))
        there = bool(mine)
        if options.get("device") is not None:
            there, options["device"] = torch.device(options["device"]).type == "meta", "cpu"
        found = function(*args, **options)
        return tree_map(lambda x: self._placed(x, mine, there), found)

    def _placed(self, found, mine, there):
        if id(found) in mine:  # an operation in place
            return mine[id(found)]
        return Elsewhere(found) if there and isinstance(found, torch.Tensor) else found


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_off_the_cpu(architecture, bits, monkeypatch):
    """A model that ran here runs on another device, with the same results, and here again."""
    monkeypatch.setenv("BITLAB_KERNEL", "float")
    as_tensor = torch.as_tensor  # makes a tensor of a number where no dispatch mode sees it
    full = lambda x, **options: torch.full((), x, **options) if isinstance(x, float) else as_tensor(x, **options)  # noqa: E731
    monkeypatch.setattr(torch, "as_tensor", full)
    packed, inputs = pack(binary(architecture, bits=bits)), batch(pad=2)
    expected = outputs(packed, **inputs)
    with OtherDevice():
        packed._apply(lambda tensor: tensor.to("meta"))
        found = outputs(packed, **{name: tensor.to("meta") for name, tensor in inputs.items()})
        packed._apply(lambda tensor: tensor.inner)
    assert all(isinstance(tensor, Elsewhere) for tensor in found)
    equal([tensor.inner for tensor in found], expected)
    equal(outputs(packed, **inputs), expected)


# ---------------------------------------------------------------------------------------------------- the file


def test_file_holds_bits(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bit_order"], config["format_version"]) == ("bitlab_packed", "little", 1)
    tensors = load_file(folder / "model.safetensors")
    latent = binary()
    signs = {}
    for name, module in latent.named_modules():
        if hasattr(module, "weight_bits"):
            signs[f"{name}.weight"] = module.weight.detach() >= module.weight.detach().mean()
    assert {name for name, tensor in tensors.items() if tensor.dtype == torch.uint8} == set(signs)
    for name, expected in signs.items():
        bits = np.unpackbits(tensors[name].numpy(), axis=1, bitorder="little")
        assert np.array_equal(bits[:, : expected.shape[1]], expected.numpy()), name
        assert not bits[:, expected.shape[1] :].any(), name
    rest = {name: tensor for name, tensor in tensors.items() if name not in signs}
    assert all(tensor.dtype == torch.float32 for tensor in rest.values())
    assert not any("initialized" in name for name in rest)


def contents(path):
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in sorted(file.keys())}


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize(("architecture", "head"), GRID)
def test_saved_and_loaded(architecture, head, bits, tmp_path):
    model = binary(architecture, head, bits)
    path = save_packed(model, tmp_path)
    assert path.name == "model.safetensors" and path.stat().st_size < 60_000
    expected = outputs(model, **batch(pad=2))
    for loaded in (load_packed(tmp_path), HEADS[head].from_pretrained(tmp_path)):
        assert type(loaded) is type(model) and is_fused(loaded)
        assert loaded.config.quantization_config.precision == f"W1A{bits}"
        equal(outputs(loaded, **batch(pad=2)), expected)
    again = tmp_path / "again"
    save_packed(load_packed(tmp_path), again)
    assert contents(again / "model.safetensors") == contents(path)


def test_other_head_keeps_the_encoder(folder):
    bare = HEADS["bare"].from_pretrained(folder)
    equal(outputs(bare, **batch())[:1], outputs(load_packed(folder).bert, **batch())[:1])


def test_half_precision_is_refused_on_loading_and_running(folder):
    assert HEADS["sequence"].from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.float32
    with pytest.raises(BitlabError, match="computes in float32"):
        load_packed(folder).bfloat16()(**batch())


def test_float_embedding_and_float_parts_stay(tmp_path):
    config = BitConfig(embedding_bits=32, modules_to_not_convert=["pooler", "layer.1.output"])
    model = warm_up(binarize(tiny(), config))
    save_packed(model, tmp_path)
    loaded = load_packed(tmp_path)
    equal(outputs(loaded, **batch()), outputs(model, **batch()))
    kinds = [type(module) for module in loaded.modules()]
    assert PackedEmbedding not in kinds and kinds.count(PackedLinear) == 11
    assert sum(isinstance(module, FusedLayer) for module in loaded.modules()) == 1


# ------------------------------------------------------------------------------------------------------ errors


def test_what_cannot_be_packed():
    for model, message in (
        (tiny(), "only a binary model"),
        (binarize(tiny()), "never trained"),
        (set_precision(binary(), "W32A32"), "W32A32 model has no 1-bit weights"),
        (pack(binary()), "packed already"),
        (warm_up(binarize(BertForMaskedLM(BertConfig(**SIZES)))), "its word embedding"),
    ):
        with pytest.raises(BitlabError, match=message):
            pack(model)


def test_a_packed_model_never_goes_back_into_training():
    packed = pack(binary())
    for change in (binarize, lambda model: set_precision(model, "W1A2")):
        with pytest.raises(BitlabError, match=r"binary already|latent weights are gone"):
            change(packed)
    assert not packed.hf_quantizer.is_trainable and not any(p.requires_grad for p in packed.parameters())


class Own(BertForSequenceClassification):
    """A model class that is not one of transformers'."""


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda folder: binary().save_pretrained(folder), "latent checkpoint"),
        (lambda folder: None, "there is no model in"),
        (lambda folder: tiny().save_pretrained(folder), "holds no packed model"),
        (lambda folder: pack(binary()).save_pretrained(folder, max_shard_size="5KB"), "a packed model is one file"),
        (lambda folder: save_packed(warm_up(binarize(Own(tiny().config))), folder), "names no model class of transf"),
    ],
)
def test_what_is_no_packed_model_to_be_loaded(write, says, tmp_path):
    write(tmp_path / "model")
    with pytest.raises(BitlabError, match=says):
        load_packed(tmp_path / "model")


def damage(folder, tmp_path, name="model.safetensors"):
    target = tmp_path / "damaged"
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target, target / name


def rewrite(path, change, **notes):
    """Write the tensors again after `change`, with a checksum that fits."""
    tensors = load_file(path)
    change(tensors)
    config = json.loads((path.parent / "config.json").read_text())
    fresh = metadata(tensors, config) | {"format": "pt"}
    save_file(tensors, path, fresh | notes)


def tensors(change, **notes):
    return lambda target: rewrite(target / "model.safetensors", change, **notes)


def edit(**entries):
    def changed(target):
        path = target / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return changed


def header(change):
    """The file's header changed as text, its length corrected."""

    def changed(target):
        path = target / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        text = change(data[8 : 8 + length])
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return changed


def newer(target):
    path = target / "config.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))


WEIGHT = "bert.encoder.layer.0.output.dense.weight"
DAMAGES = {
    "no scale": (tensors(lambda t: t[f"{WEIGHT}_scale"].fill_(math.nan)), f"'{WEIGHT}_scale'.*not finite"),
    "endless scale": (tensors(lambda t: t[f"{WEIGHT}_scale"].fill_(math.inf)), f"'{WEIGHT}_scale'.*not finite"),
    "narrow": (tensors(lambda t: t.update({WEIGHT: t[WEIGHT][:, :-1].contiguous()})), "should be"),
    "float": (tensors(lambda t: t.update({WEIGHT: t[WEIGHT].float()})), "should be"),
    "missing": (tensors(lambda t: t.pop(WEIGHT)), "has no .*encoder.layer.0.output.dense.weight"),
    "newer file": (tensors(lambda t: None, bitlab_format="2"), "newer than this bitlab reads"),
    "newer config": (newer, r"format version 2.*update bitlab"),
    "decoder": (edit(is_decoder=True, add_cross_attention=True), "does not belong"),
    "swapped": (edit(id2label={"0": "LABEL_2", "1": "LABEL_1", "2": "LABEL_0"}), "does not belong"),
    "class": (edit(architectures=["BertForTokenClassification"]), "does not belong"),
    "heads": (edit(num_attention_heads=4), "does not belong"),
    "problem": (edit(problem_type="regression"), "does not belong"),
    "NaN in the header": (
        header(lambda text: text.replace(b'"data_offsets":[0', b'"data_offsets":[NaN', 1)),
        "damaged",
    ),
    "mark before the header": (header(lambda text: b"\xef\xbb\xbf" + text), "damaged"),
    "UTF-16": (header(lambda text: text.decode().encode("utf-16")), "damaged"),
    "type in the header": (header(lambda text: text.replace(b"F32", b"F64", 1)), "damaged"),
    "a list": (header(lambda text: b"[]"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damages_by_hand(name, folder, tmp_path):
    (change, says), (target, _) = DAMAGES[name], damage(folder, tmp_path)
    change(target)
    for load in (load_packed, HEADS["sequence"].from_pretrained):
        with pytest.raises(BitlabError, match=says):
            load(target)


def test_older_files_know_the_settings_that_they_were_written_with(tmp_path):
    """Packed models of commit 148a635 hold a list of settings in place of all of config.json."""
    target = Path(shutil.copytree(Path(__file__).parent / "compat" / "packed-bert-W1A1", tmp_path / "old"))
    load_packed(target)
    save_packed(load_packed(target), tmp_path / "new")
    for name in ("old", "new"):
        path = tmp_path / name / "config.json"
        path.write_text(path.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
        with pytest.raises(BitlabError, match="does not belong"):
            load_packed(tmp_path / name)


def test_a_class_of_ones_own_loads_what_it_saved(tmp_path):
    save_packed(warm_up(binarize(Own(tiny().config))), tmp_path)
    assert is_fused(Own.from_pretrained(tmp_path))


def test_no_code_of_a_checkpoint_is_run(folder, tmp_path, monkeypatch, capsys):
    target, path = damage(folder, tmp_path, "config.json")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    config = json.loads(path.read_text())
    edits = [{"auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}}]
    for edit in (*edits, edits[0] | {"model_type": "evil"}):
        (target / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        path.write_text(json.dumps(config | edit))
        with pytest.raises(BitlabError):
            load_packed(target)
    assert not (tmp_path / "ran").exists() and "[y/N]" not in capsys.readouterr().out


def test_a_pickle_is_never_packed(tmp_path):
    binary().save_pretrained(tmp_path / "latent")
    (tmp_path / "latent" / "model.safetensors").unlink()
    torch.save(binary().state_dict(), tmp_path / "latent" / "pytorch_model.bin")
    with pytest.raises(BitlabError, match=r"no file named model\.safetensors"):
        pack_folder(tmp_path / "latent", tmp_path / "packed")


def test_what_lies_beside_the_folder_is_left_alone(tmp_path):
    """A backup, for instance: `mv model model.old`, then pack to `model`."""
    for name in ("model.old", "model.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    for _ in range(2):
        save_packed(binary(), tmp_path / "model")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.old", "model.partial"]
        assert len(list(tmp_path.glob("model.*/thesis.tex"))) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_keeps_the_older_model(folder, tmp_path, monkeypatch, error):
    target, _ = damage(folder, tmp_path)
    before = {file.name: file.read_bytes() for file in target.iterdir()}

    def half(self, place, **options):
        (Path(place) / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", half)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BitlabError):
        save_packed(binary(), target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["damaged"]


def test_only_a_packed_model_is_written_over(folder, tmp_path):
    target, _ = damage(folder, tmp_path)
    save_packed(binary(seed=1), target)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(BitlabError, match=r"holds other files \(thesis\.tex\)"):
        save_packed(binary(), target)
    (target / "thesis.tex").unlink()
    config = json.loads((target / "config.json").read_text())
    latent = json.dumps(config | {"quantization_config": {"quant_method": "bitlab"}})
    for content in (latent, "{", "[]", "{}", '{"quantization_config": null}', None):  # somebody's weights
        (target / "config.json").write_text(content or "")
        if content is None:
            (target / "config.json").unlink()
        before = {file.name: file.read_bytes() for file in target.iterdir()}
        with pytest.raises(BitlabError, match="holds another model"):
            save_packed(binary(), target)
        assert {file.name: file.read_bytes() for file in target.iterdir()} == before


def corrupt(data: bytes, chance: random.Random) -> bytes:
    """One random fault of a file."""
    place = chance.randrange(len(data))
    early = chance.randrange(min(len(data), 4000))
    return chance.choice(
        [
            lambda: data[:place],
            lambda: data[:early],
            lambda: data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :],
            lambda: data[:early] + bytes([data[early] ^ 1 << chance.randrange(8)]) + data[early + 1 :],
            lambda: data[:place] + chance.randbytes(chance.randint(1, 300)) + data[place:],
            lambda: data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :] + b"\1",
            lambda: chance.randbytes(8) + data[8:],
            lambda: b"",
            lambda: data + b"\0" * 8,
        ]
    )()


@pytest.mark.parametrize(("name", "times", "errors"), [("model.safetensors", 40, 40), ("config.json", 20, 11)])
def test_corruptions_are_each_one_clear_error_or_change_nothing(name, times, errors, folder, tmp_path):
    target, path = damage(folder, tmp_path, name)
    whole, chance, found = path.read_bytes(), random.Random(1), 0
    expected = outputs(load_packed(folder), **batch())
    for _ in range(times):
        path.write_bytes(corrupt(whole, chance))
        try:
            loaded = load_packed(target)
        except BitlabError:
            found += 1
        else:
            equal(outputs(loaded, **batch()), expected)
    assert found >= errors


# ------------------------------------------------------------------------------------------- BERT-base, measured


RUN = """
import resource, sys, torch
import transformers.models.bert.modeling_bert
from bitlab.packed import is_fused, load_packed
from bitlab.packed.backends import backend_status
torch.set_num_threads(1)
torch.randn(64, 64) @ torch.randn(64, 64)
backend_status()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
model = load_packed(sys.argv[1])
with torch.no_grad():
    logits = model(torch.ones(1, 128, dtype=torch.long)).logits
assert is_fused(model) and logits.isfinite().all()
# not getrusage: its peak starts from that of the process which started this one
peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print((peak - before) / 2**20)
"""


def test_bert_base_on_disk_and_in_memory(tmp_path):
    with torch.device("meta"):
        model = binarize(BertForSequenceClassification(BertConfig()))
    ones = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(ones, assign=True)
    path = save_packed(model, tmp_path)
    with open(path, "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    mib = (path.stat().st_size - header) / 2**20
    assert mib == pytest.approx(15.51, rel=0.01)  # 15.40 and the betas of q, k and v
    assert header < 150_000
    if sys.platform != "linux" or backends.backend_status()[0] in ("int8", "float"):
        return  # the int8 fallback holds a byte a weight
    assert 15 < float(python("-c", RUN, tmp_path).split()[-1]) < 250
