"""May a Full layer that serves many keep more keys? k of every Full layer at a fixed total, without training.

Not in the paper (k is 2048 in every layer there). With r(l) the layers that read Full layer l's set, l among them, F Full layers of N:

  reads: k(l) ~ r(l)^a with sum r(l) k(l) = N k, the same number of keys read by attention; a = 1/2 and -1/2
  sets:  k(l) ~ r(l) with sum k(l) = F k, the same size of all index sets; attention then reads more
"""

from lab import sources
from pool import Arm

RULES = {"reads-more": ("reads", 0.5), "reads-fewer": ("reads", -0.5), "sets": ("sets", 1.0)}


def arms(lab):
    needs = [f"search/{name}" for name in lab["patterns"]] if "search" in lab.options.names else []
    yield Arm("topk", "model", [lambda: lab.evaluate("model", [lab.found(f"search/{p}", lab["keep"]) for p in lab["patterns"]])],
              after=needs, importance=4)  # fmt: skip
    for pattern in lab["patterns"]:
        for rule in RULES:
            name = f"{pattern}-{rule}"
            yield Arm("topk", name, [command(lab, name, pattern, rule)], after=needs, importance=4)


def command(lab, name, search, rule):
    def step():
        pattern = lab.found(f"search/{search}", lab["keep"])
        if pattern is None:
            raise ValueError(f"no pattern at {lab['keep']} in search/{search}.json: run search too, or give --patterns FOLDER")
        k = allocate(sources(pattern), lab.model_config["index_topk"], *RULES[rule])
        return lab.evaluate(name, [pattern], "--index-topk", ",".join(map(str, k)))

    return step


def allocate(layer_sources, k, total, exponent):
    """k of every layer, at least 1; Shared layers, which have no set of their own, are given the model's."""
    full = [layer for layer, source in enumerate(layer_sources) if source < 0]
    readers = {layer: 1 + layer_sources.count(layer) for layer in full}
    shares = {layer: readers[layer] ** exponent for layer in full}
    if total == "reads":
        unit = len(layer_sources) * k / sum(readers[layer] * shares[layer] for layer in full)
    else:
        unit = len(full) * k / sum(shares.values())
    return [max(1, round(unit * shares[layer])) if layer in shares else k for layer in range(len(layer_sources))]
