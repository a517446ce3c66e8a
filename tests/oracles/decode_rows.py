"""Decodes rows of many types with third-party implementations and compares the results with given float32 values.

Reads FOLDER/cases.json, a list of {"type", "id", "n_per_row", "bytes", "values"}. The last two are names of files in
FOLDER: raw rows, and the expected values (little-endian float32). Prints JSON with the largest difference divided by
the largest value, for each type and each implementation that supports it: {"Q4_K": {"gguf": 0.0, "libgguf": 0.0}, ...}.
The implementations are PyPI `gguf`, `libgguf` (where available), and, for types that `gguf` does not support yet,
"here": a few lines in this file.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy

try:
    import libgguf
except ImportError:
    libgguf = None


def packed(rows, block_bytes, bits):
    """Splits blocks of an F16 scale and codes of `bits` bits, lowest bits first, into scales and codes (float32)."""
    blocks = rows.reshape(-1, block_bytes)
    scales = blocks[:, :2].copy().view("<f2").astype(numpy.float32)
    shifts = numpy.arange(0, 8, bits, dtype=numpy.uint8)
    codes = (blocks[:, 2:, None] >> shifts) & numpy.uint8((1 << bits) - 1)
    return scales, codes.reshape(len(blocks), -1).astype(numpy.float32)


def q1_0(rows):
    scales, codes = packed(rows, 18, 1)
    return scales * (2 * codes - 1)


def q2_0(rows):
    scales, codes = packed(rows, 18, 2)
    return scales * (codes - 1)


HERE = {"Q1_0": q1_0, "Q2_0": q2_0}


def decoders(case):
    name, n_per_row = case["type"], case["n_per_row"]
    if name in HERE:
        yield "here", HERE[name]
    elif name in gguf.GGMLQuantizationType.__members__:
        kind = gguf.GGMLQuantizationType[name]
        assert kind == case["id"], f"{name}: expected type id {case['id']}, found {int(kind)} in gguf"
        yield "gguf", lambda rows: gguf.dequantize(rows, kind)
    if libgguf is not None and name in libgguf.GGMLQuantizationType.__members__ and name not in ("F32", "F16", "BF16"):
        yield "libgguf", lambda rows: libgguf.dequantize_rows(rows, case["id"], n_per_row)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    results = {}
    for case in json.loads((folder / "cases.json").read_text()):
        expected = numpy.fromfile(folder / case["values"], dtype="<f4")
        rows = numpy.fromfile(folder / case["bytes"], dtype=numpy.uint8).reshape(len(expected) // case["n_per_row"], -1)
        found = results.setdefault(case["type"], {})
        for name, decode in decoders(case):
            values = numpy.asarray(decode(rows), dtype=numpy.float32).reshape(-1)
            difference = float(numpy.abs(values - expected).max() / numpy.abs(expected).max())
            found[name] = max(found.get(name, 0.0), difference)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
