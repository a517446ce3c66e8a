"""Dequantizes rows of a tensor with PyPI `gguf`, and writes them as raw little-endian float32 (row by row) or as .npy.

Prints {"tensor", "type", "shape" (llama.cpp's ne order), "rows": [first, end], "n_per_row", "out"} as JSON.
For a tensor with more than two dimensions, the rows of all its matrices are numbered consecutively.
"""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy
import tensors


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tensor")
    parser.add_argument("--rows", default=":", metavar="A:B", help="rows A up to, not including, B (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="FILE.npy, or any other name for raw float32")
    return parser.parse_args()


def row_range(text, rows):
    first, colon, last = text.partition(":")
    try:
        first, last = int(first or 0), int(last or rows)
    except ValueError:
        colon = ""
    if not colon or not 0 <= first < last <= rows:
        sys.exit(f"error: --rows {text}: expected A:B with 0 <= A < B <= {rows}")
    return first, last


def main():
    arguments = parse_arguments()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(arguments.model).tensors}
    tensor = found.get(arguments.tensor)
    if tensor is None:
        sys.exit(f"error: {arguments.model} has no tensor {arguments.tensor}")
    first, last = row_range(arguments.rows, len(tensors.raw_rows(tensor)))
    values = tensors.dequantized(tensor, first, last).astype("<f4")
    if arguments.out.suffix == ".npy":
        numpy.save(arguments.out, values)
    else:
        values.tofile(arguments.out)
    print(
        json.dumps(
            {
                "tensor": tensor.name,
                "type": tensor.tensor_type.name,
                "shape": [int(n) for n in tensor.shape],
                "rows": [first, last],
                "n_per_row": values.shape[-1],
                "out": str(arguments.out),
            }
        )
    )


if __name__ == "__main__":
    main()
