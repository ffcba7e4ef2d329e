"""Tables of distillation: distill, alternate. Each takes a folder of results; None: not run."""

from distill import AGAIN, RUNS, TIMED
from markdown import LOSS_HEAD, cell, loss_cells, own_cells, table
from results import Results, first


def training_cells(results, name):
    """Tokens and seconds of all stages."""
    curves = results.json(f"{name}-curves")
    if curves is None:
        return ["", ""]
    return [f"{sum(s['tokens'] for s in curves['stages']) / 1e6:.2f}", f"{sum(s['seconds'] for s in curves['stages']):.0f}"]


def scores_of(results, name):
    found = results.scores(name)
    return first(found) if found else None


def distill(folder):
    """Each arm against the all-Full model trained alike, and what the pattern cost before training."""
    results = Results(folder)
    full = scores_of(results, "distill/full")
    if full is None:
        return None
    untrained = results.scores("distill/untrained")
    rows = [["all Full", "", before(untrained, full), *own_cells(full), *training_cells(results, "distill/full")]]
    for name, _, loss, _ in RUNS:
        scores = scores_of(results, f"distill/{name}")
        if name == "full" or scores is None:
            continue
        rows.append([name.removesuffix(f"-{loss}"), loss, before(untrained, scores), *loss_cells(scores, full),
                     *training_cells(results, f"distill/{name}")])  # fmt: skip
    head = ["pattern", "index loss", "loss before training", *LOSS_HEAD, "M tokens", "seconds, shared device"]
    return table(head, rows)


def before(untrained, scores):
    """The untrained model's loss under the same pattern, as a difference from its own all-Full one."""
    if scores.pattern not in untrained:
        return ""
    baseline = first(untrained)
    return cell(untrained[scores.pattern].loss(baseline)) if scores.pattern != baseline.pattern else cell(baseline.loss(), 4, 1, "")


def seeds(folder):
    """The arms that were trained with other seeds too, each against the all-Full model of its seed."""
    results = Results(folder)
    rows = []
    for name in AGAIN:
        arms = [suffix for suffix in ("", "-seed-2", "-seed-3") if scores_of(results, f"distill/{name}{suffix}")]
        for suffix in arms:
            scores, full = scores_of(results, f"distill/{name}{suffix}"), scores_of(results, f"distill/full{suffix}")
            if name != "full" and full is not None:
                rows.append([name, suffix.removeprefix("-seed-") or "1", *loss_cells(scores, full)])
    return table(["arm", "seed", *LOSS_HEAD], rows) if rows else None


def timed(folder):
    """The two losses at equal time, and at equal steps."""
    results = Results(folder)
    multi, own = TIMED
    rows = []
    for said, suffix in (("steps", ""), ("time", "-timed")):
        a, b = scores_of(results, f"distill/{multi}{suffix}"), scores_of(results, f"distill/{own}{suffix}")
        if a is not None and b is not None:
            tokens = [training_cells(results, f"distill/{name}{suffix}")[0] for name in (multi, own)]
            rows.append([said, *tokens, *loss_cells(b, a)])
    return table(["equal", "multi: M tokens", "own: M tokens", *(f"own - multi: {head}" for head in LOSS_HEAD)], rows) if rows else None


def alternate(folder):
    """The second round, against the all-Full model trained in two rounds alike."""
    results = Results(folder)
    full = scores_of(results, "alternate/full-twice")
    if full is None:
        return None
    rows = [["all Full", *own_cells(full), f"`{full.pattern}`"]]
    for name in ("same-pattern", "new-pattern"):
        scores = scores_of(results, f"alternate/{name}")
        if scores is not None:
            rows.append([name.replace("-", " "), *loss_cells(scores, full), f"`{scores.pattern}`"])
    return table(["second round", *LOSS_HEAD, "pattern"], rows)


TABLES = {made.__name__: made for made in (distill, seeds, timed, alternate)}
