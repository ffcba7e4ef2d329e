"""What sharing costs without training: every strategy at every budget, judged on held-out text.

Paper: Tables 2 and 4 (uniform against searched), Table 5 and appendix C (similarity), and section 3.2's cost of a search; the loss
along the removal order is that section's observation (ii). Routed patterns are not in the paper.
"""

from pool import Arm

# Longest first: the pool starts them in this order.
STRATEGIES = ["routed", "greedy", "routed-lazy", "lazy", "similarity", "screened", "forward", "blocked"]


def labels(lab):
    """What is judged: (label, search result or None, budget)."""
    for keep in lab["budgets"]:
        yield "uniform", None, keep
        for strategy in STRATEGIES:
            yield strategy, f"search/{strategy}", keep
        for start in ("uniform", "greedy"):
            yield f"descent on {start}", f"search/{descent(start, keep)}", keep


def descent(start, keep):
    return f"descent-{start}-{keep.replace('/', '-')}"


def arms(lab):
    for strategy in STRATEGIES:
        # forward beyond the largest budget, and blocked beyond one layer a block, are of no use here.
        more = {"forward": ["--keep", lab["budgets"][0]], "blocked": ["--blocks", lab["blocks"]]}.get(strategy, [])
        yield Arm("search", strategy, [lab.search(strategy, strategy, *more)])
    for keep in lab["budgets"]:
        name = descent("uniform", keep)
        yield Arm("search", name, [lab.search(name, "descent", "--start", f"uniform:{keep}")])
        name = descent("greedy", keep)
        yield Arm("search", name, [descent_on_greedy(lab, name, keep)], needs=["search/greedy"])
    for keep in lab["budgets"]:
        searches = [f"search/{strategy}" for strategy in STRATEGIES] + [f"search/{descent(s, keep)}" for s in ("uniform", "greedy")]
        yield Arm("search", f"eval-{keep.replace('/', '-')}", [judge(lab, keep)], after=searches)


def descent_on_greedy(lab, name, keep):
    return lambda: lab.search(name, "descent", f"--start={lab.found('search/greedy', keep)}")


def judge(lab, keep):
    def command():
        patterns = [f"uniform:{budget}" if result is None else lab.found(result, budget) for _, result, budget in labels(lab) if budget == keep]
        return lab.evaluate(f"eval-{keep.replace('/', '-')}", patterns)

    return command
