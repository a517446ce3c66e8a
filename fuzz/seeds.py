"""Writes the seed corpus of every fuzz target, a few small files each, to FOLDER/TARGET.

Uses the standard library only. The output is deterministic.
"""

import json
import math
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, item):
    """Encodes a GGUF value: U16 2, U32 4, I32 5, F32 6, BOOL 7, STRING 8, ARRAY 9 as (kind, items), U64 10."""
    if kind == 8:
        return text(item)
    if kind == 9:
        inner, items = item
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, one) for one in items)
    return struct.pack({2: "<H", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q"}[kind], item)


def gguf(keys, tensors, version=3, alignment=32):
    """Builds a GGUF file whose tensors are all F32, with arbitrary values."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(text(key) + struct.pack("<I", kind) + value(kind, item) for key, kind, item in keys)
    data = b""
    for number, (name, shape) in enumerate(tensors):
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        head += struct.pack("<IQ", 0, len(data))
        data += b"".join(struct.pack("<f", 0.5 + 0.25 * ((number + i) % 3)) for i in range(math.prod(shape)))
        data += bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment if tensors else 0) + data


def model(arch, keys=(), tensors=(), **more):
    own = [("general.architecture", 8, arch), (f"{arch}.block_count", 4, 1), (f"{arch}.embedding_length", 4, 4)]
    block = [("token_embd.weight", (4, 2)), ("blk.0.attn_output.weight", (4, 4))]
    return gguf([*own, *keys], [*block, *tensors], **more)


def ggufs():
    tokens = [
        ("tokenizer.ggml.model", 8, "gpt2"),
        ("tokenizer.ggml.tokens", 9, (8, ["a", "b"])),
        ("tokenizer.ggml.token_type", 9, (5, [1, 1])),
        ("tokenizer.ggml.scores", 9, (6, [0.0, 1.0])),
    ]
    experts = [("llama.expert_count", 4, 2), ("llama.expert_used_count", 4, 1)]
    shard = [("split.no", 2, 0), ("split.count", 2, 2), ("split.tensors.count", 5, 3)]
    down = ("blk.0.ffn_down.weight", (4, 4))
    norms = [(f"blk.0.{name}.weight", (4,)) for name in ("post_attention_norm", "post_ffw_norm")]
    return {
        "llama": model("llama", tokens, [down]),
        "moe": model("llama", experts, [("blk.0.ffn_down_exps.weight", (4, 4, 2))]),
        "gemma3": model("gemma3", (), [down, *norms]),
        "granite": model("granite", [("granite.residual_scale", 6, 0.5)], [down]),
        "aligned": model("qwen2", [("general.alignment", 4, 64)], [down], alignment=64),
        "second": model("llama", [], [down], version=2),
        "shard": model("llama", shard, [down]),
        "keys": gguf([("a", 7, True), ("b", 10, 1 << 40), ("c", 9, (4, []))], []),
    }


def imatrices():
    weight = "blk.0.ffn_down.weight"
    old = struct.pack("<i", 1) + struct.pack("<i", len(weight)) + weight.encode()
    old += struct.pack("<ii", 2, 4) + struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
    keys = [("general.type", 8, "imatrix"), ("imatrix.datasets", 9, (8, ["text"]))]
    sums = [(f"{weight}.in_sum2", (4, 1)), (f"{weight}.in_sum", (4, 1)), (f"{weight}.counts", (1, 1))]
    experts = [("a.in_sum2", (4, 2)), ("a.counts", (1, 2))]
    return {"old": old, "new": gguf(keys, sums), "experts": gguf(keys, experts), "no-sums": gguf(keys, [sums[0], sums[2]])}


def safetensors(facts, arrays):
    header, data = {"__metadata__": {"rosi": json.dumps(facts)}}, b""
    for name, shape, values in arrays:
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def stored_edits():
    tensors = ["blk.0.attn_output.weight", "blk.0.ffn_down.weight"]
    facts = {
        "format": 1, "version": "0.1.0", "llama_cpp": "b1", "method": "contrast", "system_prompt": "none",
        "chosen": {"direction_source": "plain", "layer": 0, "window": [0.0, 1.0], "contrast": 1.0},
        "strength": 0.04, "norms": [2.0], "push": 0.5, "prompts_sha256": "0" * 64, "input_sha256": "1" * 64,
        "separation": [{"layer": 0, "norm": 2.0, "relative_norm": 0.5, "auroc": 1.0, "d_prime": None}],
        "model": {
            "architecture": "llama", "n_layer": 1, "n_embd": 4,
            "writers": [{"tensor": name, "n_in": 4, "n_out": 4, "n_expert": 1} for name in tensors],
            "small": {"blk.0.attn_norm.weight": "0123456789abcdef"}, "sketches": [],
        },
    }  # fmt: skip
    arrays = [("direction", [4], [1.0, 0.0, 0.0, 0.0])]
    for name in tensors:
        arrays += [(f"right.{name}", [1, 4], [0.5] * 4), (f"mean.{name}", [4], [0.1] * 4)]
        arrays += [(f"diagonal.{name}", [4], [1.0] * 4), (f"principal.{name}", [1, 4], [0.2] * 4)]
    ablated = json.loads(json.dumps(facts))
    ablated["chosen"]["direction_source"] = "ablated"
    return {"dense": safetensors(facts, arrays), "ablated": safetensors(ablated, arrays)}


def prompts():
    """Builds prompt files. The first byte selects the file name and so the format, as in fuzz/src/lib.rs."""
    lines = '{"prompt": "How?", "kind": "harmful", "topic": "a"}\n{"text": "Why?", "label": "harmless"}\n'
    table = 'prompt,kind,topic\n"How, and\nwhy?",harmful,a\nWhat?,harmless,\n'
    return {"text": b"\0# a list\nHow?\n\nWhy?\n", "csv": b"\1goal,category\r\nHow?,x\r\n", "lines": b"\2" + lines.encode(),
            "table": b"\3" + table.encode(), "object": b'\4{"instruction": "When?"}\n',
            "array": b'\4[\n {"goal": "When?",\n  "category": "x"},\n "Who?"\n]\n',
            "around": b'\4{"n": 1, "data": [{"text": "When?"}]}\n{"goal": "Who?"}', "tabs": b"\5goal\tx\nHow?\t1\n"}  # fmt: skip


def templates():
    chatml = """{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
    flags = """{{ bos_token }}{% set ns = namespace(found=false, text='') %}{% for m in messages %}{% if m.role == 'system' %}
{% set ns.found = true %}{% set ns.text = m.content %}{% elif loop.last %}{{ ns.text ~ m.content.strip() }}{% endif %}{% endfor %}"""
    strict = """{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{% macro say(m) %}[INST] {{ m.content.split('x') | join('x') }} [/INST]{% endmacro %}{{ say(messages[-1]) }}"""
    tools = """{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '' %}{% for m in messages | reverse %}
{{ {'a': [1, 2.5, none, true], 'm': m} | tojson }}{{ m.content[::-1] | upper | replace('A', 'b') }}{{ 'x' * 3 }}
{% endfor %}{{ range(3) | list | length }}{{ messages | map(attribute='content') | join(' ') }}{{ date[:2] }}"""
    return {name: body.encode() for name, body in (("chatml", chatml), ("flags", flags), ("strict", strict), ("tools", tools))}


def patches():
    return {path.stem: path.read_bytes() for path in sorted((ROOT / "patches").glob("*.toml"))}


def main():
    folder = Path(sys.argv[1])
    kinds = {"gguf": ggufs, "patches": patches, "prompts": prompts, "imatrix": imatrices, "template": templates, "stored": stored_edits}
    for target, make in kinds.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in make().items():
            (folder / target / f"seed-{name}").write_bytes(data)


if __name__ == "__main__":
    main()
