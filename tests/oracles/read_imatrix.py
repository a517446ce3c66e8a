"""Reads importance matrices with PyPI `libgguf`.

Prints {file: {weight: [mean square of each input]}} as JSON, or null if libgguf is not installed.
"""

import json
import sys

try:
    from libgguf import load_imatrix
except ImportError:
    load_imatrix = None


def main():
    if load_imatrix is None:
        print("null")
        return
    read = {path: {name: list(map(float, values.reshape(-1))) for name, values in load_imatrix(path).items()} for path in sys.argv[1:]}
    print(json.dumps(read))


if __name__ == "__main__":
    main()
