"""What somebody would run instead of a packed model: the same float encoder in other engines, as they are advised.

    onnxruntime int8   dynamic quantization of the exported graph
    OpenVINO bf16      its inference precision on processors that have it
    OpenVINO int8      NNCF's quantization after training, transformer preset, calibrated on random sentences

They come with `pip install -e '.[bench]'`. An engine that is absent is named with the reason, never guessed.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Contender:
    """run: word ids (batch, length) -> the last hidden states, of any type. bytes: of its weights; None: unknown."""

    run: Callable[[Tensor], object]
    bytes: int | None = None


class HiddenStates(nn.Module):
    """An encoder as engines take it: ids in, one tensor out, attention in plain operations."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        model.set_attn_implementation("eager")

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).last_hidden_state


def engines(model: nn.Module, ids: Tensor, threads: int) -> tuple[dict[str, Contender], dict[str, str]]:
    """The engines that are installed, made of a copy of a float encoder; and why the others are absent.

    Args:
        model: a float encoder, which is changed (its attention runs eager): give a copy.
        ids: an example of its input, (batch, length). threads: that an engine may use.
    """
    made, absent = {}, {}
    makers = {
        "onnxruntime int8": (_onnxruntime_int8, ("onnxruntime", "onnx")),
        "OpenVINO bf16": (_openvino_bf16, ("openvino",)),
        "OpenVINO int8": (_openvino_int8, ("openvino", "nncf")),
    }
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        for name, (make, packages) in makers.items():
            missing = [package for package in packages if find_spec(package) is None]
            if missing:
                absent[name] = f"{' and '.join(missing)} not installed"
                continue
            try:
                made[name] = make(HiddenStates(model).eval(), ids.clone(), threads)
            except Exception as error:  # an engine of another version, or for another processor
                absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return made, absent


def _onnxruntime_int8(model: nn.Module, ids: Tensor, threads: int) -> Contender:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        axes = {"ids": {0: "batch", 1: "length"}}
        names = {"input_names": ["ids"], "output_names": ["states"], "dynamic_axes": axes}
        torch.onnx.export(model, (ids,), str(whole), dynamo=False, opset_version=17, **names)
        quantize_dynamic(str(whole), str(small), weight_type=QuantType.QInt8)
        data = small.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Contender(lambda ids: session.run(None, {"ids": ids.numpy()})[0], len(data))


def _openvino_bf16(model: nn.Module, ids: Tensor, threads: int) -> Contender:
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor has no bf16")
    return _openvino(openvino.convert_model(model, example_input=(ids,)), threads, INFERENCE_PRECISION_HINT="bf16")


def _openvino_int8(model: nn.Module, ids: Tensor, threads: int) -> Contender:
    import nncf
    import openvino

    top = model.model.config.vocab_size
    sentences = nncf.Dataset([torch.randint(0, top, ids[:1].shape).numpy() for _ in range(16)])
    graph = openvino.convert_model(model, example_input=(ids,))
    graph = nncf.quantize(graph, sentences, model_type=nncf.ModelType.TRANSFORMER, subset_size=16)
    return _openvino(graph, threads)


def _openvino(graph, threads: int, **hints) -> Contender:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(graph, Path(folder) / "model.xml")
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    hints |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(graph, "CPU", hints)
    return Contender(lambda ids: compiled(ids.numpy())[0], size)


@contextlib.contextmanager
def _quiet():
    """Exporters and quantizers write pages of progress and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
