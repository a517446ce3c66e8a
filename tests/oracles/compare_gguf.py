"""Compares two GGUF files with PyPI `gguf`: tensors byte by byte, metadata value by value.

Prints JSON: n_tensors, identical (number of tensors with the same type and bytes), changed [{name, type, edited_type,
relative_change}], added_tensors, missing_tensors, added_keys, changed_keys, missing_keys, order_preserved (whether
tensors and keys of the base have the same order in the edited file).

relative_change = ||edited - base||_F / ||base||_F of the dequantized values, in float64; null if the base is all zero
or the shapes differ.
"""

import argparse
import json
import math
from pathlib import Path

import gguf
import numpy
import tensors

# Prefix under which the reader presents the file header as fields, which are not metadata.
HEADER = "GGUF."


def relative_change(base, edited):
    if list(base.shape) != list(edited.shape):
        return None
    difference = norm = 0.0
    for first, last in tensors.chunks(len(tensors.raw_rows(base))):
        before = tensors.dequantized(base, first, last).astype(numpy.float64)
        after = tensors.dequantized(edited, first, last).astype(numpy.float64)
        difference += float(numpy.sum((after - before) ** 2))
        norm += float(numpy.sum(before**2))
    ratio = math.sqrt(difference / norm) if norm > 0 else math.nan
    return ratio if math.isfinite(ratio) else None


def same_tensor(base, edited):
    return (
        base.tensor_type == edited.tensor_type
        and list(base.shape) == list(edited.shape)
        and numpy.array_equal(tensors.raw_rows(base), tensors.raw_rows(edited))
    )


def compare_tensors(base, edited):
    after = {tensor.name: tensor for tensor in edited.tensors}
    changed, identical = [], 0
    for tensor in base.tensors:
        other = after.get(tensor.name)
        if other is None:
            continue
        if same_tensor(tensor, other):
            identical += 1
            continue
        changed.append(
            {
                "name": tensor.name,
                "type": tensor.tensor_type.name,
                "edited_type": other.tensor_type.name,
                "relative_change": relative_change(tensor, other),
            }
        )
    return changed, identical


def keys_of(reader):
    """Maps each key to the bytes of its record in the file: name, type and value."""
    result = {}
    for name, field in reader.fields.items():
        if not name.startswith(HEADER):
            size = sum(int(part.nbytes) for part in field.parts)
            result[name] = bytes(reader.data[field.offset : field.offset + size])
    return result


def is_subsequence_in_order(before, after):
    common = set(before) & set(after)
    return [name for name in before if name in common] == [name for name in after if name in common]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("edited", type=Path)
    arguments = parser.parse_args()

    base, edited = gguf.GGUFReader(arguments.base), gguf.GGUFReader(arguments.edited)
    names, edited_names = [t.name for t in base.tensors], [t.name for t in edited.tensors]
    keys, edited_keys = keys_of(base), keys_of(edited)
    changed, identical = compare_tensors(base, edited)
    print(
        json.dumps(
            {
                "n_tensors": len(names),
                "identical": identical,
                "changed": changed,
                "added_tensors": [name for name in edited_names if name not in set(names)],
                "missing_tensors": [name for name in names if name not in set(edited_names)],
                "added_keys": [key for key in edited_keys if key not in keys],
                "changed_keys": [key for key in keys if key in edited_keys and keys[key] != edited_keys[key]],
                "missing_keys": [key for key in keys if key not in edited_keys],
                "order_preserved": is_subsequence_in_order(names, edited_names)
                and is_subsequence_in_order(list(keys), list(edited_keys)),
            }
        )
    )


if __name__ == "__main__":
    main()
