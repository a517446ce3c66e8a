"""Prints the residual stream after a given block, computed by a third-party build of llama.cpp.

Writes a copy of the model that ends after --blocks blocks (PyPI `gguf`), loads it with PyPI `xllamacpp`, and requests
the embedding of the last token: output_norm(residual), scaled to length 1. Prints {"embedding", "runtime"} as JSON.
"""

import argparse
import importlib.metadata
import json
import tempfile
from pathlib import Path

import gguf
import xllamacpp


def beyond(name, blocks):
    return name.startswith("blk.") and int(name.split(".")[1]) >= blocks


def truncate(source, target, blocks):
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        value = blocks if name == f"{architecture}.block_count" else field.contents()
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    kept = [tensor for tensor in reader.tensors if not beyond(tensor.name, blocks)]
    for tensor in kept:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def embedding(model, text):
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 512
    params.n_gpu_layers = 0
    params.warmup = False
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer = xllamacpp.Server(params).handle_embeddings({"input": text, "model": "any"})
    return answer["data"][0]["embedding"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--prompt", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "short.gguf"
        truncate(arguments.model, short, arguments.blocks)
        values = embedding(short, arguments.prompt)
    print(json.dumps({"embedding": values, "runtime": f"xllamacpp {importlib.metadata.version('xllamacpp')}"}))


if __name__ == "__main__":
    main()
