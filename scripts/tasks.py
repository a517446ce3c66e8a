"""Counts the tasks that a model solved: problems with a number for an answer, and Python functions with tests.

    tasks.py check     tests this file and the solutions in programs.jsonl
    tasks.py run       runs the program on stdin with its tests; exits with 0 if it passes them, and with 3 if it fails

A program of a model runs in a process of its own, for a few seconds, and may neither open files, sockets or processes
nor import modules that are not loaded.
"""

import json
import pathlib
import re
import subprocess
import sys

SECONDS = 5
MEMORY = 1 << 30
# Modules that programs may import.
MODULES = "bisect collections copy datetime functools heapq itertools math operator random re statistics string typing"
# Exit status of a program that fails its tests; Python's own for an error is 1.
FAILED = 3
# What a program may do, in the names of Python's audit events: any other event ends it.
ALLOWED = {"compile", "exec", "builtins.id", "object.__getattr__", "object.__setattr__", "sys._getframe", "sys._getframemodulename"}


def last_number(text):
    """The last number in a text, or None. Commas between digits count as separators of thousands."""
    found = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text))
    return float(found[-1]) if found else None


def right_number(answer, task):
    return last_number(answer) == float(task["answer"])


def program_of(answer):
    """The first fenced block of an answer, or the whole of an answer without one."""
    found = re.search(r"```[^\n]*\n(.*?)(?:```|\Z)", answer, re.S)
    return found[1] if found else answer


def passes(answer, task):
    """Whether the program in an answer passes the task's tests."""
    program = json.dumps({"code": program_of(answer), "tests": task["tests"]})
    try:
        run = subprocess.run(
            [sys.executable, "-I", __file__, "run"], input=program, capture_output=True, text=True, timeout=2 * SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    if run.returncode in (1, 2):
        raise RuntimeError(f"cannot run programs: {run.stderr}")
    return run.returncode == 0


def run():
    """Runs a program and its tests, which are expressions that must be true. `raises(error, f, *arguments)` is one."""
    import contextlib
    import importlib
    import os
    import resource

    task = json.load(sys.stdin)
    for module in MODULES.split():
        importlib.import_module(module)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def raises(error, function, *arguments):
        try:
            function(*arguments)
        except error:
            return True
        return False

    def guard(event, _):
        if event not in ALLOWED:
            os._exit(FAILED)

    sys.addaudithook(guard)
    try:
        names = {"__name__": "program"}
        exec(compile(task["code"], "program", "exec"), names)
        names["raises"] = raises
        passed = all(eval(test, names) for test in task["tests"])
    except BaseException:
        passed = False
    os._exit(0 if passed else FAILED)


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def solved(asked, right):
    """Whether each task of a set in a report of `eval` was answered right."""
    tasks = {task["prompt"]: task for task in read(asked["source"])}
    return [right(row["answer"], tasks[row["prompt"]]) for row in asked["kinds"]["harmless"]["answers"]]


def check():
    tasks = read(pathlib.Path(__file__).with_name("programs.jsonl"))
    for task in tasks:
        fenced = f'Here it is:\n```python\n{task["solution"]}\n```\nIt works.'
        assert passes(fenced, task), task["prompt"]
        name = re.search(r"(?:def|class) (\w+)", task["solution"])[1]
        assert f"`{name}" in task["prompt"], task["prompt"]
        assert not passes(f"def {name}(*arguments):\n    pass", task), f"too weak: {task['prompt']}"
    task = {"tests": ["f() == 1"]}
    assert passes("import math, re\ndef f():\n    return math.ceil(.5)", task)
    for body in (
        "return 2",
        "while True: pass",
        "return open('/dev/null') and 1",
        "import socket\n    return 1",
        "import os\n    return os.system('true') + 1",
        "raise SystemExit(0)",
        "return input() or 1",
        "return len(bytearray(1 << 32)) and 1",
        "syntax error",
    ):
        assert not passes(f"def f():\n    {body}", task), body
    assert not passes("I cannot help with that.", task)
    for text, number in (("so 3 * 4 = **12**.", 12), (r"\boxed{1,250}", 1250), ("It costs $-2.50", -2.5), ("none", None)):
        assert last_number(text) == number, text
    print(f"{len(tasks)} programs")


if __name__ == "__main__":
    {"check": check, "run": run}[sys.argv[1]]()
