"""Continues a text greedily with a third-party llama.cpp (PyPI `xllamacpp`) and prints each token's log-probability.

Prints {"tokens": [{"id", "text", "logprob"}], "prompt_tokens", "runtime"} as JSON. logprob is the natural logarithm of
the token's probability under the softmax of all logits.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

from generate_elsewhere import start_server


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=12)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if not arguments.model.is_file():
        sys.exit(f"error: {arguments.model} is not a file")
    request = {"prompt": arguments.prompt, "max_tokens": arguments.tokens, "temperature": 0.0, "seed": 1, "logprobs": 1, "cache_prompt": False}
    answer = start_server(arguments.model, None).handle_completions(request)
    if "choices" not in answer:
        sys.exit(f"error: no answer: {json.dumps(answer)}")
    content = answer["choices"][0]["logprobs"]["content"]
    result = {
        "tokens": [{"id": token["id"], "text": token["token"], "logprob": token["logprob"]} for token in content],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "runtime": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
    }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
