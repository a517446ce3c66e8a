"""Prints the log-probabilities of the next token in a third-party llama.cpp (PyPI `xllamacpp`), for several models.

Prints {"runtime", "models": [{"path", "logprobs"}]} as JSON. `logprobs` has the natural logarithm of the probability of
every token of the vocabulary after the text, by id.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

from generate_elsewhere import start_server


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--vocabulary", type=int, required=True, help="number of tokens of every model")
    parser.add_argument("--say", type=int, required=True, help="id of a token that is a whole character")
    return parser.parse_args()


def ask(model, arguments):
    # For a token that is only part of a character, the server reports nothing until the character is complete. So a
    # bias makes it choose a token that is a whole character; the reported probabilities are those before the bias.
    request = {"prompt": arguments.prompt, "max_tokens": 1, "temperature": 0.0, "seed": 1, "cache_prompt": False}
    request |= {"logprobs": arguments.vocabulary, "logit_bias": {str(arguments.say): 1e6}}
    answer = start_server(model, None).handle_completions(request)
    if "choices" not in answer:
        sys.exit(f"error: {model} gives no answer: {json.dumps(answer)}")
    content = answer["choices"][0]["logprobs"]["content"]
    first = {token["id"]: token["logprob"] for token in content[0]["top_logprobs"]}
    if sorted(first) != list(range(arguments.vocabulary)):
        sys.exit(f"error: {model}: expected {arguments.vocabulary} tokens, found {len(first)}")
    logprobs = [first[token] for token in range(arguments.vocabulary)]
    return {"path": str(model), "logprobs": logprobs}


def main():
    arguments = parse_arguments()
    for model in arguments.models:
        if not model.is_file():
            sys.exit(f"error: {model} is not a file")
    models = [ask(model, arguments) for model in arguments.models]
    print(json.dumps({"runtime": f"xllamacpp {importlib.metadata.version('xllamacpp')}", "models": models}))


if __name__ == "__main__":
    main()
