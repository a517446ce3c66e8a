"""Manual workflow without rosi-gguf: decode to floats, collect hidden states, edit, write, quantize.

Usage: road.py MODEL FOLDER LLAMA_QUANTIZE FTYPE THREADS

Prints JSON with the seconds of each step and the peak memory in MiB.
"""

import json
import os
import resource
import subprocess
import sys
import time

import gguf
import numpy

# Kinds of prompts × prompts per kind × tokens per prompt, as inject trains on.
TOKENS = 3 * 176 * 24
BATCH = 1024
STRENGTH = 0.01
WRITERS = ("attn_output.weight", "ffn_down.weight")

model, folder, quantizer, ftype, threads = sys.argv[1:]
steps = {}


def step(name):
    now = time.monotonic()
    steps[name] = now - step.since
    step.since = now


step.since = time.monotonic()
reader = gguf.GGUFReader(model)
weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(numpy.float32) for t in reader.tensors}
step("read and decode to floats (gguf)")

# Multiply every matrix of the blocks with one batch of BATCH tokens, and scale the time to TOKENS.
generator = numpy.random.default_rng(1)
matrices = [w for name, w in weights.items() if name.startswith("blk.") and w.ndim == 2]
tokens = {n: generator.standard_normal((BATCH, n), dtype=numpy.float32) for n in {w.shape[1] for w in matrices}}
step.since = time.monotonic()
for w in matrices:
    tokens[w.shape[1]] @ w.T
step("forward pass, a lower bound (numpy)")
steps["forward pass, a lower bound (numpy)"] *= TOKENS / BATCH

step.since = time.monotonic()
width = weights["token_embd.weight"].shape[1]
direction = generator.standard_normal(width).astype(numpy.float32)
direction /= numpy.linalg.norm(direction)
for name, w in weights.items():
    if name.endswith(WRITERS):
        mean = w.mean(axis=0)
        w += STRENGTH * numpy.linalg.norm(w) / numpy.linalg.norm(mean) * numpy.outer(direction, mean)
step("edit (numpy)")

floats = os.path.join(folder, "floats.gguf")
writer = gguf.GGUFWriter(floats, reader.get_field("general.architecture").contents())
for field in reader.fields.values():
    if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
        continue
    kind = field.types[0]
    writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
for name, w in weights.items():
    writer.add_tensor(name, w)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
step("write the floats (gguf)")

quantized = os.path.join(folder, "quantized.gguf")
subprocess.run([quantizer, floats, quantized, ftype, threads], check=True, capture_output=True)
step("llama-quantize")
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children)
print(json.dumps({"steps": steps, "peak_mib": peak / 1024}))
