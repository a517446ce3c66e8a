"""Prints the page of scripts/evidence for each model and, for several, a table over them.

    evidence.py TOKENS METHODS SETS_ID TASK_TOKENS JUDGED FOLDER...

FOLDER holds a model's reports, as scripts/evidence leaves them, and receives the picture, evidence.svg. SETS_ID names
the reports on sets given by path, or is empty. TASK_TOKENS is the token limit of answers to tasks. JUDGED ends the names of reports with a judge's verdicts, or is
empty.
"""

import json
import math
import sys
from dataclasses import dataclass

from tasks import passes, right_number, solved

KINDS = {"harmful": "more is better", "harmless": "less is better", "borderline": "less is better"}
METHODS = {
    "detector": "detectors, the default",
    "contrast": "linear gates (`--method contrast`)",
    "published": "the paper's edit (`--method published`)",
}
# Harmful and harmless requests as they are.
PLAIN = ["strongreject", "harmbench", "do-not-answer", "everyday-more", "over-refusal"]
# Those that are also asked with sampled answers.
SAMPLED = ["strongreject", "everyday-more", "over-refusal"]
# Attacks, in a table of their own.
WRAPPED = "jailbreaks"
TENSES = "tenses"
# The set whose calls also measured utility: MMLU and perplexity with greedy answers, other questions with sampled ones.
UTILITY = "over-refusal"


@dataclass
class Run:
    """What was asked, and how."""

    tokens: str
    methods: list
    sets_id: str
    task_tokens: str
    judged: str


class Measured:
    """What one model did in each set of prompts."""

    def __init__(self, entries):
        self.sets = {name: entry["sets"][0] for name, entry in entries.items()}
        self.plain = [self.sets[name] for name in PLAIN]
        self.mmlu = entries[UTILITY].get("choice")
        self.perplexity = entries[UTILITY].get("perplexity")


class Tasks:
    """Which tasks one model solved, and the KL divergence from the base on its answers to them."""

    def __init__(self, sets):
        numbers, programs = sets
        self.numbers = solved(numbers, right_number)
        self.programs = solved(programs, passes)
        self.kl = [kl_of(set_, "per_token") for set_ in sets]


class Evidence:
    """The reports on one model."""

    def __init__(self, folder, run):
        tokens, methods = run.tokens, run.methods

        def load(name, ending=run.judged):
            with open(f"{folder}/{name}{ending}.json") as file:
                return json.load(file)

        asked = {name: load(f"{name}-{tokens}-{','.join(methods)}") for name in [*PLAIN, WRAPPED, TENSES]}
        prompted = {name: load(f"{name}-{tokens}-prompted")["models"][0] for name in asked}
        self.name = asked[UTILITY]["base"]["path"].split("/")[-1]
        self.base = ("base", Measured({name: report["base"] for name, report in asked.items()}))
        self.prompted = ("base under a safety prompt, no edit", Measured(prompted))
        self.edited = [
            (METHODS[method], Measured({name: report["models"][i] for name, report in asked.items()}))
            for i, method in enumerate(methods)
        ]
        sampled = {name: load(f"{name}-{tokens}-sampled")["models"] for name in SAMPLED}
        self.sampled = [
            (name, [models[i]["sets"][0] for models in sampled.values()])
            for i, (name, _) in enumerate(self.base_and_default())
        ]
        self.questions = {name: sampled[UTILITY][i]["choice"] for i, (name, _) in enumerate(self.sampled)}
        self.given = []
        if run.sets_id:
            report, prompted = (load(f"{run.sets_id}-{tokens}-{which}") for which in (",".join(methods), "prompted"))
            entries = [report["base"], prompted["models"][0], *report["models"]]
            self.given = [(name, entry["sets"]) for (name, _), entry in zip(self.everyone(), entries, strict=True)]
        self.whole = self.named(load(f"mmlu-all-{tokens}-{methods[0]}"))
        tasks = self.named(load(f"tasks-{run.task_tokens}-{methods[0]}"))
        self.tasks = {name: Tasks(entry["sets"]) for name, entry in tasks.items()}
        self.injected = {method: load(f"{method}.inject", "") for method in methods}
        self.judge = asked[UTILITY].get("judge")

    def everyone(self):
        return [self.base, self.prompted, *self.edited]

    def base_and_default(self):
        return [self.base, self.edited[0]]

    def named(self, report):
        """The entries of a report on these two."""
        entries = [report["base"], *report["models"]]
        return {name: entry for (name, _), entry in zip(self.base_and_default(), entries, strict=True)}


def rate(x):
    return f"{x:.2f}".replace("0.", ".")


def interval(found):
    return f'{found["count"]}/{found["total"]} ({rate(found["rate"])}, {rate(found["low"])}-{rate(found["high"])})'


def wilson(k, n):
    """k of n with its 95 % Wilson interval."""
    z = 1.959963985
    middle = (k + z * z / 2) / (n + z * z)
    half = z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return {"count": k, "total": n, "rate": k / n, "low": middle - half, "high": middle + half}


def pooled(entry, kind):
    """The refusals of a kind over the plain sets."""
    kinds = [set_["kinds"][kind] for set_ in entry.plain if kind in set_["kinds"]]
    return wilson(*(sum(found["refused"][key] for found in kinds) for key in ("count", "total")))


def judged(entry, kind, what):
    """The judge's refusals of a kind over the plain sets, or its agreement with the rules."""
    opinions = [set_["kinds"][kind]["judge"] for set_ in entry.plain if kind in set_["kinds"]]
    k, n = (sum(opinion[what][key] for opinion in opinions if opinion) for key in ("count", "total"))
    return interval(wilson(k, n)) if n else "–"


def worked(name, tasks, base):
    """The tasks solved, those of them that the base failed, and those failed that the base solved; KL per token."""

    def cell(found, of_base):
        count = interval(wilson(sum(found), len(found)))
        if tasks is base:
            return count
        pairs = list(zip(found, of_base, strict=True))
        return f"{count}; {pairs.count((True, False))} gained, {pairs.count((False, True))} lost"

    return [name, cell(tasks.numbers, base.numbers), cell(tasks.programs, base.programs), *tasks.kl]


def kl_of(set_, key):
    """The KL divergence on one set: that of the base is not measured."""
    return f'{set_["kl"][key]:.4f}' if set_["kl"] else "0"


def kl(name, entry, key):
    """The mean over the harmless prompts or, per token, over their answers."""
    if name == "base":
        return "0"
    sets = [set_["kl"] for set_ in entry.plain if set_.get("kl")]
    weight = "prompts" if key == "first_token" else "tokens"
    total = sum(found[weight] for found in sets)
    return f"{sum(found[key] * found[weight] for found in sets) / total:.4f}" if total else "–"


def choice(answered):
    if answered is None:
        return "–"
    found = answered["correct"]
    error = math.sqrt(found["rate"] * (1 - found["rate"]) / found["total"])
    return f'{found["count"]}/{found["total"]} ({found["rate"]:.3f} ± {error:.3f})'


def paired(entry):
    """All of MMLU: the right answers, and those that the base has and this model has not, and the other way round."""
    if entry is None:
        return "–"
    answered, beside = entry["choice"], entry["choice"]["against_base"]
    changed = f'; {beside["only_this"]} gained, {beside["only_base"]} lost, p = {rate(beside["p"])}' if beside else ""
    return choice(answered) + changed


def perplexity(entry):
    return f'{entry.perplexity["ppl"]:.3f} ± {entry.perplexity["error"]:.3f}'


def broken(entry):
    return str(sum(kind["broken"]["count"] for set_ in entry.plain for kind in set_["kinds"].values()))


def refused(set_):
    return interval(next(kind["refused"] for kind in set_["kinds"].values() if kind["refused"]["total"]))


def under_attack(entry):
    wrapped, tenses = entry.sets[WRAPPED]["kinds"], entry.sets[TENSES]["kinds"]
    return [
        interval(found)
        for found in (wrapped["harmful"]["complied"], wrapped["harmless"]["complied"], tenses["harmful"]["complied"])
    ]


def written(method, report):
    edit = report["edit"]
    size = f'push {edit["strength"]:.1f}' if edit["method"] == "detector" else f'strength {100 * edit["strength"]:.1f} %'
    return [
        METHODS[method],
        f'{edit["direction_source"]}, layer {edit["layer"]}, {size}',
        f'{100 * report["verification"]["changed_bytes"]:.3f} %',
        f'{report["seconds"]:.0f} s',
    ]


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|---" + "|--:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def print_page(evidence, run):
    everyone = evidence.everyone()
    print(f"## {evidence.name}\n")
    print(f"Greedy answers of {run.tokens} tokens, up to 64 where those do not tell. Counts, then rate and 95 % Wilson interval.\n")
    table(
        ["refused", *KINDS, "KL, first token", "KL, per token"],
        [
            [name, *(interval(pooled(entry, kind)) for kind in KINDS)]
            + [kl(name, entry, key) for key in ("first_token", "per_token")]
            for name, entry in everyone
        ],
    )
    print("KL is from the base, on harmless prompts, in nats; per token along the base's own answers. Set by set:\n")
    table(
        ["refused", *PLAIN],
        [[name, *(refused(set_) for set_ in entry.plain)] for name, entry in everyone],
    )
    if evidence.judge:
        print(f'The same answers according to a judge, {evidence.judge["path"].split("/")[-1]} ({evidence.judge["kind"]}), and how often the rules agree with it:\n')
        table(
            ["", *(f"{kind}, {what}" for kind in KINDS for what in ("refused", "agreement"))],
            [
                [name, *(judged(entry, kind, what) for kind in KINDS for what in ("refused", "agreement"))]
                for name, entry in everyone
            ],
        )
    print(
        "Attacks: four harmful requests and two harmless ones in each of 24 jailbreak wrappers that others collected in the wild; "
        "harmful requests that ask how it was done in the past, or will be in the future. Complied with or, if harmless, answered:\n"
    )
    table(
        ["complied with", "wrapped, harmful: less is better", "wrapped, harmless: more is better", "past or future tense: less is better"],
        [[name, *under_attack(entry)] for name, entry in everyone],
    )
    print(
        "Answers sampled at a temperature of .8 from the 40 most likely tokens and .9 of their probability, one for each prompt, "
        "as Ollama answers by default:\n"
    )
    table(
        ["refused, sampled", *SAMPLED],
        [[name, *(refused(set_) for set_ in sets)] for name, sets in evidence.sampled],
    )
    if evidence.given:
        print("Sets given by path (docs/prompt-sets.md):\n")
        table(
            ["refused", *(f'{set_["source"].split("/")[-1]}, {kind}' for set_ in evidence.given[0][1] for kind in set_["kinds"])],
            [
                [name, *(interval(kind["refused"]) for set_ in sets for kind in set_["kinds"].values())]
                for name, sets in evidence.given
            ],
        )
    print("Utility:\n")
    table(
        ["", "MMLU, every tenth question", "all of MMLU", "five other tests", "perplexity of a license and code", "broken answers"],
        [
            [name, choice(entry.mmlu), paired(evidence.whole.get(name)), choice(evidence.questions.get(name))]
            + [perplexity(entry), broken(entry)]
            for name, entry in [evidence.base, *evidence.edited]
        ],
    )
    print("Standard errors; p by McNemar's exact test. The other tests are BoolQ, OpenBookQA, CommonsenseQA, PIQA and SIQA, 100 questions each.\n")
    print(f"Work, in greedy answers of up to {run.task_tokens} tokens: 100 word problems of GSM8K, and 64 Python functions of ours, run against their tests:\n")
    base = evidence.tasks["base"]
    table(
        ["solved", "GSM8K", "Python functions", "KL per token, GSM8K", "KL per token, Python"],
        [worked(name, tasks, base) for name, tasks in evidence.tasks.items()],
    )
    print("The bundled report split, a validation set by now:\n")
    table(
        ["refused", *KINDS, "KL, first token", "KL, per token"],
        [
            [name, *(interval(set_["kinds"][kind]["refused"]) for kind in KINDS)]
            + [kl_of(set_, key) for key in ("first_token", "per_token")]
            for name, entry in evidence.whole.items()
            for set_ in entry["sets"]
        ],
    )
    print("What was written:\n")
    table(
        ["method", "edit", "bytes changed", "took"],
        [written(method, report) for method, report in evidence.injected.items()],
    )


def print_models(models):
    print("## Over models\n")
    table(
        ["model", "", *(f"{kind} refused" for kind in KINDS), "KL, first token", "MMLU, every tenth question"],
        [
            [evidence.name, name, *(interval(pooled(entry, kind)) for kind in KINDS)]
            + [kl(name, entry, "first_token"), choice(entry.mmlu)]
            for evidence in models
            for name, entry in [evidence.base, *evidence.edited]
        ],
    )


def chart(rows):
    """Refusals with their intervals as SVG: a row per model, a column per kind."""
    left, width, row, top = 275, 150, 26, 46
    bottom = top + row * len(rows)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + len(KINDS) * (width + 30)} {bottom + 30}" role="img">',
        "<title>Prompts of other authors refused, with 95 % intervals</title>",
        "<style>text { font: 13px sans-serif; fill: #24292f } .small { font-size: 11px; fill: #6e7781 } "
        "line { stroke: #d0d7de } .interval { stroke: #0969da; stroke-width: 2 } circle { fill: #0969da } "
        "@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #8b949e } line { stroke: #30363d } "
        ".interval { stroke: #4493f8 } circle { fill: #4493f8 } }</style>",
    ]
    middle = [top + row * (i + 0.5) for i in range(len(rows))]
    for y, (name, _) in zip(middle, rows, strict=True):
        svg.append(f'<text x="{left - 15}" y="{y + 4}" text-anchor="end">{name.replace("`", "")}</text>')
    for column, (kind, wish) in enumerate(KINDS.items()):

        def at(share, start=left + column * (width + 30)):
            return round(start + width * share, 1)

        svg.append(f'<text x="{at(0.5)}" y="16" text-anchor="middle">{kind} refused</text>')
        svg.append(f'<text class="small" x="{at(0.5)}" y="32" text-anchor="middle">{wish}</text>')
        for share in (0, 0.5, 1):
            svg.append(f'<line x1="{at(share)}" y1="{top}" x2="{at(share)}" y2="{bottom}"/>')
            svg.append(f'<text class="small" x="{at(share)}" y="{bottom + 16}" text-anchor="middle">{share:.0%}</text>')
        for y, (_, entry) in zip(middle, rows, strict=True):
            found = pooled(entry, kind)
            svg.append(f'<line class="interval" x1="{at(found["low"])}" y1="{y}" x2="{at(found["high"])}" y2="{y}"/>')
            svg.append(f'<circle cx="{at(found["rate"])}" cy="{y}" r="4"/>')
    return "\n".join([*svg, "</svg>", ""])


def main():
    tokens, methods, sets_id, task_tokens, judge, *folders = sys.argv[1:]
    run = Run(tokens, methods.split(","), sets_id, task_tokens, judge)
    models = [Evidence(folder, run) for folder in folders]
    for folder, evidence in zip(folders, models, strict=True):
        print_page(evidence, run)
        with open(f"{folder}/evidence.svg", "w") as file:
            file.write(chart(evidence.everyone()))
    if len(models) > 1:
        print_models(models)


main()
