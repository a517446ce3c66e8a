"""Copies a GGUF file with every quantized matrix dequantized to F16 or F32, using the reader and writer of PyPI `gguf`.

Metadata is kept, except for general.file_type, which becomes 1 (mostly F16) or 0 (F32). Prints {"out", "converted",
"kept"} as JSON.
"""

import argparse
import json
import os
from pathlib import Path

import gguf
import numpy
import tensors

PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}


def to_convert(tensor):
    return len(tensor.shape) >= 2 and tensor.tensor_type.name not in PLAIN


def copy_keys(reader, writer, file_type):
    for name, field in reader.fields.items():
        # The writer has already written the architecture; GGUF.* is the header, not metadata.
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        value = int(file_type) if name == "general.file_type" else field.contents()
        if name == "general.alignment":
            writer.data_alignment = value
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)


def announce(tensor, writer, dtype):
    if to_convert(tensor):
        shape = [int(n) for n in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, dtype, dtype.itemsize * int(tensor.n_elements))
    else:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)


def as_floats(tensor, dtype):
    rows = len(tensors.raw_rows(tensor))
    result = numpy.empty((rows, int(tensor.shape[0])), dtype=dtype)
    for first, last in tensors.chunks(rows):
        result[first:last] = tensors.dequantized(tensor, first, last)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--f32", action="store_true")
    arguments = parser.parse_args()
    dtype = numpy.dtype(numpy.float32 if arguments.f32 else numpy.float16)
    file_type = gguf.LlamaFileType.ALL_F32 if arguments.f32 else gguf.LlamaFileType.MOSTLY_F16

    reader = gguf.GGUFReader(arguments.model)
    unfinished = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, reader.fields["general.architecture"].contents())
    try:
        copy_keys(reader, writer, file_type)
        for tensor in reader.tensors:
            announce(tensor, writer, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            writer.write_tensor_data(as_floats(tensor, dtype) if to_convert(tensor) else tensor.data)
        writer.close()
        unfinished.replace(arguments.out)
    finally:
        unfinished.unlink(missing_ok=True)

    converted = sum(map(to_convert, reader.tensors))
    print(json.dumps({"out": str(arguments.out), "converted": converted, "kept": len(reader.tensors) - converted}))


if __name__ == "__main__":
    main()
