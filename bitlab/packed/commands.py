"""`bitlab pack CHECKPOINT OUT`, for the command line."""

import argparse
import json
from pathlib import Path

from bitlab.errors import BitlabError


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a trained binary model")
    parser.add_argument("out", metavar="OUT", help="folder for the packed model")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def pack_command(options: argparse.Namespace) -> int:
    """Pack a checkpoint, with its tokenizer if it has one, and say what became of its bytes."""
    from bitlab.packed.model import is_fused, load_packed, save_packed

    source, out = Path(options.checkpoint).expanduser(), Path(options.out).expanduser()
    check_out(source, out)
    model = load_latent(source)
    path = save_packed(model, out)
    copy_tokenizer(source, out)
    packed = load_packed(out)
    result = {
        "precision": packed.config.quantization_config.precision,
        "fused": is_fused(packed),
        "bytes": path.stat().st_size,
        "float_bytes": sum(4 * p.numel() for n, p in model.named_parameters() if "_binarizer." not in n),
    }
    result["times_smaller"] = round(result["float_bytes"] / result["bytes"], 1)
    print(json.dumps(result) if options.json else _report(result))
    return 0


def check_out(source: Path, out: Path) -> None:
    """BitlabError where packing into `out` would cost a model; a packed one can be made again."""
    if out.exists() and out.resolve() == source.resolve():
        raise BitlabError("CHECKPOINT and OUT are the same folder: the latent weights would be lost")
    config = out / "config.json"
    if not config.exists():
        return
    try:
        method = json.loads(config.read_text(encoding="utf-8"))["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        method = None
    if method != "bitlab_packed":
        raise BitlabError(f"{str(out)!r} holds another model, which would be lost: choose another OUT, or delete it")


def load_latent(folder: Path):
    """The trained binary model in a folder."""
    import transformers

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = getattr(transformers, raw["architectures"][0])
        method = (raw.get("quantization_config") or {}).get("quant_method")
    except OSError as error:
        raise BitlabError(f"there is no checkpoint in {str(folder)!r}: it has no config.json to read") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BitlabError(
            f"config.json in {str(folder)!r} names no model class: give a folder that bitlab saved"
        ) from error
    if method != "bitlab":
        state = "packed already" if method == "bitlab_packed" else "no binary model"
        raise BitlabError(
            f"the checkpoint in {str(folder)!r} is {state}: give the folder of a trained one, runs/.../W1A1"
        )
    try:
        return kind.from_pretrained(folder).eval()
    except BitlabError:
        raise
    except Exception as error:  # safetensors, JSON, shapes: whatever a damaged checkpoint makes transformers raise
        line = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BitlabError(f"the checkpoint in {str(folder)!r} cannot be loaded: {line[0][:200]}") from error


def copy_tokenizer(source: Path, out: Path) -> None:
    names = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece")
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name.startswith(names):
            (out / file.name).write_bytes(file.read_bytes())


def _report(result: dict) -> str:
    how = "runs from bits to bits (fused)" if result["fused"] else "packed weights, layers not fused"
    return (
        f"{result['precision']}: {result['bytes'] / 2**20:.2f} MiB, {result['times_smaller']} times smaller than "
        f"the float model's {result['float_bytes'] / 2**20:.1f}; {how}"
    )
