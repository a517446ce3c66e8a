"""Helpers shared by the oracles: a tensor of PyPI `gguf` as rows, raw or dequantized."""

import gguf
import numpy

# Number of rows to process at a time. In float64, a vocabulary of 256,000 rows would need gigabytes.
ROWS_AT_ONCE = 4096


def raw_rows(tensor):
    """Returns the tensor's bytes as a matrix with one row per row of the weight (of all experts, consecutively)."""
    rows = int(numpy.prod(tensor.shape[1:], dtype=numpy.int64))
    return tensor.data.reshape(-1).view(numpy.uint8).reshape(rows, -1)


def dequantized(tensor, first, last):
    """Returns rows first..last, dequantized by gguf, as float32 (float64 for float64 and integer types)."""
    data = tensor.data.reshape(-1, tensor.data.shape[-1])[first:last]
    kind = tensor.tensor_type
    if kind.name in ("F64", "I8", "I16", "I32", "I64"):
        return data.astype(numpy.float64)
    return gguf.dequantize(data, kind)


def chunks(rows):
    for first in range(0, rows, ROWS_AT_ONCE):
        yield first, min(first + ROWS_AT_ONCE, rows)
