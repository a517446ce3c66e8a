"""Loads a GGUF file with a third-party build of llama.cpp (PyPI `xllamacpp`) and prints its answer to a prompt.

Our files must work in the runtimes that people use, so this one shares neither the build nor the chat template engine
with ours. Generation is greedy, on the CPU, with two threads.

Prints {"text", "prompt_tokens", "tokens", "finish_reason", "runtime"} as JSON.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

import xllamacpp


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--lora", type=Path, help="a GGUF adapter, applied at scale 1")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template (base models)")
    return parser.parse_args()


def start_server(model, lora):
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 2048
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    # Waiting threads sleep instead of spinning, because tests share two cores.
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"error: {model} could not be loaded (see the log above): {error}")


def generate(server, arguments):
    request = {"temperature": 0.0, "seed": 1, "max_tokens": arguments.tokens, "cache_prompt": False}
    if arguments.raw:
        return server.handle_completions(request | {"prompt": arguments.prompt})
    return server.handle_chat_completions(request | {"messages": [{"role": "user", "content": arguments.prompt}]})


def main():
    arguments = parse_arguments()
    for path in filter(None, (arguments.model, arguments.lora)):
        if not path.is_file():
            sys.exit(f"error: {path} is not a file")
    answer = generate(start_server(arguments.model, arguments.lora), arguments)
    if "choices" not in answer:
        sys.exit(f"error: no answer: {json.dumps(answer)}")
    choice, usage = answer["choices"][0], answer["usage"]
    result = {
        "text": choice["text"] if arguments.raw else choice["message"]["content"],
        "prompt_tokens": usage["prompt_tokens"],
        "tokens": usage["completion_tokens"],
        "finish_reason": choice["finish_reason"],
        "runtime": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
    }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
