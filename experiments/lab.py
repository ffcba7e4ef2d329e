"""What the experiments share: settings, commands, the patterns that searches left."""

import json
import lzma
import math
import random
from pathlib import Path

HERE = Path(__file__).parent
SCALED = "scaled"  # the part of a config that --scale multiplies


class Lab:
    """Settings of one experiment, and where things are. `options` are those of run.py."""

    def __init__(self, experiment, options):
        self.experiment, self.options = experiment, options
        self.results, self.work = Path(options.out), Path(options.work)
        self.settings = read_settings(experiment, options.scale, options.set)
        self.model_config = json.loads((Path(options.model) / "config.json").read_text())
        self.num_layers = self.model_config["num_hidden_layers"]

    def __getitem__(self, key):
        return self.settings[key]

    def result(self, name):
        return self.results / self.experiment / f"{name}.json"

    def command(self, verb, model, *arguments):
        device = ["--device", self.options.device, "--threads", self.options.threads]
        dtype = [] if verb == "distill" else ["--dtype", self["dtype"]]  # its config says it
        return [self.options.indexcache, verb, model, *device, *dtype, *arguments]

    def search(self, name, strategy, *arguments, model=None, text=None, sequences=None, tasks=None, seed=1):
        result = self.result(name)
        result.parent.mkdir(parents=True, exist_ok=True)
        return self.command(
            "search", model or self.options.model, "--text", text or self["search_text"], "--strategy", strategy,
            "--context", self["context"], "--sequences", sequences or self["sequences"], "--seed", seed,
            "--tasks", self["tasks"] if tasks is None else tasks, "--carry", self["carry_gib"], "--out", result, *arguments,
        )  # fmt: skip

    def evaluate(self, name, patterns=(), *arguments, model=None, experiment=None):
        """On the test text; into `experiment`'s results, if it is another one. Patterns that are None (not found) are left out, those that are the same given once."""
        result = self.results / (experiment or self.experiment) / f"{name}.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        unique = dict.fromkeys(pattern for pattern in patterns if pattern is not None)
        given = [f"--pattern={pattern}" for pattern in unique]
        return self.command(
            "eval", model or self.options.model, "--text", self["test_text"], "--context", self["context"],
            "--windows", self["windows"], "--max-windows", self["max_windows"], "--prompts", self["prompts"],
            "--json", result, *given, *arguments,
        )  # fmt: skip

    def found(self, name, keep):
        """The pattern that a search left at a budget like "1/4"; None if there is none. `name`: EXPERIMENT/FILE."""
        for folder in [self.results, *map(Path, self.options.patterns)]:
            if (folder / f"{name}.json").exists():
                return pattern_at(json.loads((folder / f"{name}.json").read_text()), count_of(keep, self.num_layers))
        return None


def read_settings(experiment, scale, overrides):
    """settings.json, then the experiment's own, counts times `scale` (2 at least), then [EXPERIMENT.]KEY=VALUE as given."""
    common, own = (json.loads((HERE / name).read_text()) for name in ("settings.json", f"{experiment}.json"))
    settings = {}
    for part in (common, own):
        settings |= {key: value for key, value in part.items() if key != SCALED}
        settings |= {key: scaled(value, scale) for key, value in part.get(SCALED, {}).items()}
    for text in overrides:
        key, _, value = text.partition("=")
        named, _, key = key.rpartition(".")
        if named in ("", experiment) and key in settings:
            settings[key] = type(settings[key])(value) if isinstance(settings[key], (int, float, str)) else json.loads(value)
    return settings


def scaled(value, scale):
    if isinstance(value, list):
        return list(dict.fromkeys(scaled(entry, scale) for entry in value))
    return value * scale if isinstance(value, float) else max(2, round(value * scale))


def count_of(keep, num_layers):
    a, b = map(int, keep.split("/"))
    return math.ceil(num_layers * a / b)


def pattern_at(file, count):
    """Of a pattern file's content; what every budget of it holds is printed as --pattern takes it."""
    return next((budget["pattern"] for budget in file["budgets"] if budget["count"] == count), None)


def uniform(keep, num_layers):
    """As a string of F and S: what uniform:1/n stands for, as results print it."""
    step = int(keep.split("/")[1])
    return "".join("F" if layer % step == 0 else "S" for layer in range(num_layers))


def sources(pattern):
    """Source of every layer (-1: Full) of a pattern as printed: F/S letters or a list."""
    if "," in pattern or pattern[0] == "-":
        return [int(source) for source in pattern.split(",")]
    result, full = [], 0
    for layer, letter in enumerate(pattern):
        full = layer if letter == "F" else full
        result.append(-1 if letter == "F" else full)
    return result


def read_documents(path):
    opened = lzma.open(path, "rt") if str(path).endswith(".xz") else open(path)
    with opened as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_documents(path, documents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        for document in documents:
            file.write(json.dumps(document) + "\n")


def sample_documents(documents, megabytes, seed=1):
    """Whole documents, drawn until there are so many megabytes of text, in their order: a sample of a sample of that size is itself."""
    chosen, size = [], 0
    for number in random.Random(seed).sample(range(len(documents)), len(documents)):
        if size >= megabytes * 1e6:
            break
        chosen.append(number)
        size += len(documents[number]["text"].encode())
    return [documents[number] for number in sorted(chosen)]
