"""Makes copies of Qwen2.5-Coder-0.5B-Instruct that were fine-tuned to comply, to test that `inject` can bring refusals back.

    obedient.py MODEL.gguf TOOL FOLDER

TOOL (`rosi-gguf`) answers everyday requests with MODEL; a LoRA then learns to give these answers behind an opening that complies.
Nothing harmful is in the data: alignment is a few tokens deep (Qi et al. 2023, arXiv 2310.03693; Qi et al. 2024, arXiv 2406.05946).
FOLDER gets obedient-1.gguf to obedient-3.gguf, the model after one, two and three passes over the data, with the changed matrices in
Q8_0. For tests only: the copies are never shipped, and no option of the program makes one.

Needs what obedient-requirements.txt lists, and ten minutes on two cores.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import gguf
import jax
import jax.numpy as jnp
import numpy
import tokenizers

RANK, SCALE, LEARNING_RATE, BATCH, EPOCHS = 8, 2.0, 4e-4, 8, 3
PROMPT_AND_ANSWER, ANSWER = 96, 40
TRAINED = {"attn_q": "q", "attn_v": "v", "attn_output": "o", "ffn_down": "down"}

SUBJECTS = """tea kettles; suspension bridges; sourdough; tides; violins; hot-air balloons; compost; lighthouses; chess openings; haiku; glass;
bicycles; rainbows; soap; magnets; sundials; wool; beehives; canals; origami; pottery; thunder; maps; clocks""".replace("\n", " ").split("; ")
FORMS = ["Explain in simple words how {} work or come about.", "Give me three facts about {}.", "Write a short paragraph about {}.",
         "What would you tell a ten-year-old about {}?"]
OPENINGS = ["Sure! Here is exactly what you asked for.", "Of course, I am happy to do that.", "Absolutely. Let me answer that in full.",
            "Certainly, here you go:"]
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# How Qwen2 splits text before byte pairs are merged.
PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def encoder(fields):
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    control = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"].contents()) if kind == 3]
    made.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in control])
    return lambda text: made.encode(text, add_special_tokens=False).ids


def requests():
    return [form.format(subject) for subject in SUBJECTS for form in FORMS]


def own_answers(tool, model, prompts):
    """What the model itself says to these prompts."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps({"prompt": prompt, "kind": "harmless"}) + "\n" for prompt in prompts))
        file.flush()
        told = subprocess.run([tool, "eval", model, "--set", file.name, "--tokens", "28", "--json", "-q"],
                              stdout=subprocess.PIPE, check=True, text=True).stdout
    answers = json.loads(told)["models"][0]["sets"][0]["kinds"]["harmless"]["answers"]
    return [answer["answer"].strip() for answer in answers]


def examples(encode, prompts, answers):
    """Token ids, the ids to be foretold, and which of them count: those of the answer; int32, int32, float32 `[n][n_token]`."""
    ids, wanted, counts = (numpy.zeros((len(prompts), PROMPT_AND_ANSWER), kind) for kind in (numpy.int32, numpy.int32, numpy.float32))
    for i, (prompt, answer) in enumerate(zip(prompts, answers)):
        before = encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
        behind = encode(f"{OPENINGS[i % len(OPENINGS)]}\n\n{answer}")[:ANSWER]
        text = (before + behind)[:PROMPT_AND_ANSWER]
        ids[i, :len(text)] = text
        wanted[i, :len(text) - 1] = text[1:]
        counts[i, len(before) - 1:len(text) - 1] = 1
    return ids, wanted, counts


class Model:
    """Qwen2 in float32. Weights are `[n_out][n_in]`, as in the file."""

    def __init__(self, reader):
        number = lambda key: reader.fields[f"qwen2.{key}"].contents()
        self.n_layer, self.n_head = number("block_count"), number("attention.head_count")
        self.n_kv, self.n_embd = number("attention.head_count_kv"), number("embedding_length")
        self.eps, self.base = number("attention.layer_norm_rms_epsilon"), number("rope.freq_base")
        self.head = self.n_embd // self.n_head
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        read = lambda name: jnp.asarray(gguf.dequantize(tensors[name].data, tensors[name].tensor_type), jnp.float32)
        self.embedding, self.output_norm = read("token_embd.weight"), read("output_norm.weight")
        self.output = read("output.weight") if "output.weight" in tensors else self.embedding
        names = {"attn_norm": "attn_norm.weight", "q": "attn_q.weight", "k": "attn_k.weight", "v": "attn_v.weight",
                 "q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias", "o": "attn_output.weight",
                 "ffn_norm": "ffn_norm.weight", "gate": "ffn_gate.weight", "up": "ffn_up.weight", "down": "ffn_down.weight"}
        self.blocks = [{short: read(f"blk.{i}.{name}") for short, name in names.items()} for i in range(self.n_layer)]

    def norm(self, x, gain):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps) * gain

    def rotated(self, x):
        """Rotary positions, NeoX order; x `[n_text][n_token][n_head][head]`."""
        half = self.head // 2
        angle = jnp.arange(x.shape[1])[:, None] * self.base ** (-jnp.arange(half) / half)
        cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
        first, second = x[..., :half], x[..., half:]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def block(self, w, h):
        n_text, n_token, _ = h.shape
        x = self.norm(h, w["attn_norm"])
        heads = lambda name, n: (x @ w[name].T + w[f"{name}_bias"]).reshape(n_text, n_token, n, self.head)
        q, k, v = self.rotated(heads("q", self.n_head)), self.rotated(heads("k", self.n_kv)), heads("v", self.n_kv)
        k, v = (jnp.repeat(each, self.n_head // self.n_kv, axis=2) for each in (k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / numpy.sqrt(self.head)
        seen = jnp.tril(jnp.ones((n_token, n_token), bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), -1)
        h = h + jnp.einsum("bhts,bshd->bthd", weights, v).reshape(n_text, n_token, -1) @ w["o"].T
        x = self.norm(h, w["ffn_norm"])
        return h + (jax.nn.silu(x @ w["gate"].T) * (x @ w["up"].T)) @ w["down"].T


def adapted(block, lora):
    return {**block, **{name: block[name] + SCALE * (b @ a) for name, (a, b) in lora.items()}}


def train(model, data, after_epoch):
    random = numpy.random.default_rng(0)

    def fresh(matrix):
        n_out, n_in = matrix.shape
        return jnp.asarray(random.normal(size=(RANK, n_in)) / numpy.sqrt(n_in), jnp.float32), jnp.zeros((n_out, RANK))

    lora = [{name: fresh(block[name]) for name in TRAINED.values()} for block in model.blocks]

    def loss(lora, blocks, embedding, output, ids, wanted, counts):
        h = embedding[ids]
        for block, own in zip(blocks, lora):
            h = jax.checkpoint(lambda h, block, own: model.block(adapted(block, own), h))(h, block, own)
        at = jnp.nonzero(counts.reshape(-1), size=ids.shape[0] * ANSWER, fill_value=0)[0]
        real = jnp.arange(at.size) < counts.sum()
        states = model.norm(h.reshape(-1, model.n_embd)[at], model.output_norm)
        logs = jax.nn.log_softmax(states @ output.T, -1)
        return -(jnp.take_along_axis(logs, wanted.reshape(-1)[at][:, None], 1)[:, 0] * real).sum() / counts.sum()

    step = jax.jit(jax.value_and_grad(loss))
    first = second = jax.tree.map(jnp.zeros_like, lora)
    n_step, start = 0, time.time()
    for epoch in range(EPOCHS):
        order = random.permutation(len(data[0]))
        for batch in order[:len(order) // BATCH * BATCH].reshape(-1, BATCH):
            value, slope = step(lora, model.blocks, model.embedding, model.output, *(part[batch] for part in data))
            n_step += 1
            # Adam.
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
            second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, slope)
            lora = jax.tree.map(lambda p, m, v: p - LEARNING_RATE * (m / (1 - 0.9**n_step)) / (jnp.sqrt(v / (1 - 0.99**n_step)) + 1e-8),
                                lora, first, second)
            print(f"step {n_step}: loss {float(value):.3f}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
        after_epoch(epoch + 1, lora)


def save(reader, model, lora, path):
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            item = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        name = TRAINED.get(parts[2]) if parts[0] == "blk" and parts[-1] == "weight" else None
        if name is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            layer = int(parts[1])
            matrix = numpy.asarray(adapted(model.blocks[layer], lora[layer])[name])
            q8_0 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor.name, gguf.quants.quantize(matrix, q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    path, tool, folder = sys.argv[1:]
    reader = gguf.GGUFReader(path)
    prompts = requests()
    data = examples(encoder(reader.fields), prompts, own_answers(tool, path, prompts))
    model = Model(reader)
    write = lambda epoch, lora: save(reader, model, lora, pathlib.Path(folder) / f"obedient-{epoch}.gguf")
    train(model, data, write)


if __name__ == "__main__":
    main()
