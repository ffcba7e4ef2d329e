"""How much text a search needs until its pattern stays the same: sizes, and draws of each size.

Paper: section 3.2 uses 768 sequences of 200K tokens and reports a stable ranking, without figures for less.
"""

from pool import Arm


def searches(lab):
    """name -> (sequences, seed): every size with every seed, and the largest one that they are compared with."""
    sizes = {f"{size}-{seed}": (size, seed) for seed in lab["seeds"] for size in lab["sizes"] if size < lab["largest"]}
    return {"largest": (lab["largest"], 1)} | sizes


def arms(lab):
    for name, (size, seed) in searches(lab).items():
        yield Arm("calibration", name, [lab.search(name, lab["strategy"], sequences=size, seed=seed)], importance=2 + seed)
    after = [f"calibration/{name}" for name in searches(lab)]
    for keep in lab["budgets"]:
        yield Arm("calibration", f"eval-{keep.replace('/', '-')}", [judge(lab, keep)], after=after, importance=3)


def judge(lab, keep):
    def command():
        patterns = [lab.found(f"calibration/{name}", keep) for name in searches(lab)]
        return lab.evaluate(f"eval-{keep.replace('/', '-')}", patterns)

    return command
