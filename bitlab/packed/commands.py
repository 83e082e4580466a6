"""`bitlab pack CHECKPOINT OUT`, for the command line."""

import argparse
import json


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a trained binary model")
    parser.add_argument("out", metavar="OUT", help="folder for the packed model")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def pack_command(options: argparse.Namespace) -> int:
    """Pack a checkpoint and say what became of its bytes."""
    from bitlab.packed.checkpoint import pack_folder

    result = pack_folder(options.checkpoint, options.out)
    how = "runs from codes to codes (fused)" if result["fused"] else "packed weights, layers not fused"
    said = (
        f"{result['precision']}: {result['bytes'] / 2**20:.2f} MiB, {result['times_smaller']} times smaller than "
        f"the float model's {result['float_bytes'] / 2**20:.1f}; {how}"
    )
    print(json.dumps(result) if options.json else said)
    return 0
