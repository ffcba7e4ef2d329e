"""What runs left, read for the tables: evaluations that can be compared input by input, and pattern files."""

import json
import math
from pathlib import Path


class Estimate:
    """A value and its standard error (None where there is none)."""

    def __init__(self, value, error):
        self.value, self.error = value, error

    def text(self, digits, scale=1, sign="+"):
        text = f"{self.value * scale:{sign}.{digits}f}"
        return text if self.error is None else f"{text} +- {self.error * scale:.{digits}f}"


def ratio(amounts, weights):
    """R = sum a / sum w with its standard error over items, sqrt(n / (n - 1) sum (a - R w)^2) / sum w (docs/evaluation.md)."""
    n, total = len(amounts), sum(weights)
    value = sum(amounts) / total
    if n < 2:
        return Estimate(value, None)
    squares = sum((a - value * w) ** 2 for a, w in zip(amounts, weights, strict=True))
    return Estimate(value, math.sqrt(n / (n - 1) * squares) / total)


class Scores:
    """One model under one pattern: sums of -log p of every window, and every prompt's figures."""

    def __init__(self, where, evaluation, entry):
        self.where, self.pattern = where, entry["pattern"]
        self.windows = evaluation["windows"]
        self.inputs = (evaluation["windows"], evaluation["text"], evaluation["seed"])
        self.nll = entry["language"]["each"]["nll"]
        self.tasks = {task["task"]: task["each"] for task in entry["tasks"]}

    def loss(self, minus=None, domains=None):
        """Nats a token, or the difference from other scores on the same inputs; of some domains alone."""
        other = self._same_inputs(minus).nll if minus else [0] * len(self.nll)
        chosen = [i for i, window in enumerate(self.windows) if domains is None or window["domain"] in domains]
        if not chosen:
            return None
        return ratio([self.nll[i] - other[i] for i in chosen], [self.windows[i]["tokens"] for i in chosen])

    def task(self, name, figure, minus=None):
        """Mean of "right" or "loss" over the prompts of a task, or its difference; None without prompts."""
        if name not in self.tasks:
            return None
        mine = self.tasks[name][figure]
        other = self._same_inputs(minus).tasks[name][figure] if minus else [0] * len(mine)
        return ratio([a - b for a, b in zip(mine, other, strict=True)], [1] * len(mine))

    def answers(self, minus=None):
        """Loss of the answers' tokens, mean over the prompts of all tasks, or its difference; None without prompts."""
        mine = [loss for task in self.tasks.values() for loss in task["loss"]]
        other = [loss for task in self._same_inputs(minus).tasks.values() for loss in task["loss"]] if minus else [0] * len(mine)
        return ratio([a - b for a, b in zip(mine, other, strict=True)], [1] * len(mine)) if mine else None

    def _same_inputs(self, other):
        if other.inputs != self.inputs or {k: len(v["loss"]) for k, v in other.tasks.items()} != {
            k: len(v["loss"]) for k, v in self.tasks.items()
        }:
            raise ValueError(f"{self.where} and {other.where}: expected the same inputs, found others")
        return other


class Results:
    """A folder of results: RESULTS/<experiment>/<name>.json."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def json(self, name):
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def scores(self, name):
        """Pattern as printed -> Scores, the baseline first; {} where there is no such evaluation."""
        evaluation = self.json(name)
        if evaluation is None:
            return {}
        result = {}
        for entry in evaluation["patterns"]:
            result.setdefault(entry["pattern"], Scores(f"{name}.json: {entry['pattern']}", evaluation, entry))
        return result

    def all_scores(self, names):
        """Those of every evaluation whose name is like NAMES (* as in a shell), which have to be on the same inputs."""
        found = {}
        for path in sorted(self.folder.glob(f"{names}.json")):
            for pattern, scores in self.scores(str(path.relative_to(self.folder).with_suffix(""))).items():
                found.setdefault(pattern, scores)
        return found

    def arms(self, experiment):
        """name -> record of what became of the arm."""
        records = self.json(f"{experiment}/arms") or {"arms": []}
        return {record["arm"]: record for record in records["arms"]}


def first(scores):
    """The baseline's, of what Results.scores gives."""
    return next(iter(scores.values()))


def budgets(file):
    """Count of Full layers -> pattern, of a pattern file; {} of None."""
    return {budget["count"]: budget["pattern"] for budget in file["budgets"]} if file else {}


def agreement(file, other):
    """(budgets with the same sources, budgets that both have)."""
    a, b = budgets(file), budgets(other)
    both = a.keys() & b.keys()
    return sum(a[count] == b[count] for count in both), len(both)


def ranks(values):
    """1 for the lowest; ties share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    for place, i in enumerate(order):
        same = [q for q, j in enumerate(order) if values[j] == values[i]]
        result[i] = 1 + sum(same) / len(same)
    return result


def rank_correlation(a, b):
    """Spearman's; None where one of them does not vary."""
    a, b = ranks(a), ranks(b)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return covariance / spread if spread else None
