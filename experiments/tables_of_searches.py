"""Tables of what needs no training: search, overlap, transfer, calibration, topk. Each takes a folder of results; None: not run."""

from lab import count_of, sources, uniform
from markdown import LOSS_HEAD, cell, loss_cells, own_cells, table
from results import Results, agreement, budgets, first, rank_correlation
from search import STRATEGIES, descent
from topk import RULES, allocate

REMOVALS = ["greedy", "lazy", "routed", "routed-lazy"]


def num_layers(file):
    return len(file["start"]["sources"])


def settings(results, experiment):
    return results.json(f"{experiment}/arms")["settings"]


def settle(keep):
    return keep.replace("/", "-")


def search(folder):
    """One part a budget: what each strategy's pattern costs on held-out text, beside uniform."""
    results = Results(folder)
    greedy = results.json("search/greedy")
    if results.json("search/arms") is None or greedy is None:
        return None
    parts, scores = [], results.all_scores("search/eval-*")
    for keep in settings(results, "search")["budgets"]:
        if scores:
            parts.append(f"{keep} of the layers Full:\n\n{search_at(results, scores, keep, num_layers(greedy))}")
    return "\n\n".join(parts) or None


def search_at(results, scores, keep, layers):
    count, baseline = count_of(keep, layers), first(scores)
    found = {strategy: budgets(results.json(f"search/{strategy}")).get(count) for strategy in STRATEGIES}
    patterns = {"uniform": uniform(keep, layers)} | found
    for start in ("uniform", "greedy"):
        patterns[f"descent on {start}"] = budgets(results.json(f"search/{descent(start, keep)}")).get(count)
    rows = [["all Full", *own_cells(baseline), "", ""]]
    for name, pattern in patterns.items():
        if pattern not in scores:
            continue
        beside = scores.get(found["greedy"])
        from_greedy = "" if beside is None or pattern == beside.pattern else cell(scores[pattern].loss(beside))
        rows.append([name, *loss_cells(scores[pattern], baseline), from_greedy, f"`{pattern}`"])
    return table(["strategy", *LOSS_HEAD, "loss - greedy's", "pattern"], rows)


def effort(folder):
    """What each strategy took, and at how many budgets it agrees with greedy and with routed."""
    results = Results(folder)
    files = {strategy: results.json(f"search/{strategy}") for strategy in STRATEGIES}
    found = {strategy: file for strategy, file in files.items() if file}
    if not found:
        return None
    arms = results.arms("search")
    rows = []
    for strategy, file in found.items():
        compared = ["{} of {}".format(*agreement(file, files[other])) if files[other] else "" for other in ("greedy", "routed")]
        attentions = f" and {file['attention_runs']} attentions" if "attention_runs" in file else ""
        rows.append([strategy, str(file["evaluations"]), f"{file['layer_runs']}{attentions}", f"{100 * file['layer_run_share']:.0f} %",
                     f"{arms[strategy]['seconds']:.0f}" if "seconds" in arms.get(strategy, {}) else "", *compared])  # fmt: skip
    head = ["strategy", "evaluations", "layer runs a sequence", "of separate", "seconds, shared device", "as greedy", "as routed"]
    return table(head, rows)


def removal(folder):
    """Loss on the calibration text along the order in which layers lose their indexers."""
    results = Results(folder)
    files = {strategy: file for strategy in REMOVALS if (file := results.json(f"search/{strategy}"))}
    if not files:
        return None
    entries = {strategy: {entry["count"]: entry for entry in file["budgets"]} for strategy, file in files.items()}
    rows = []
    for count in sorted({count for of in entries.values() for count in of}, reverse=True):
        row = [str(count)]
        for strategy, file in files.items():
            entry = entries[strategy].get(count)
            row += ["", ""] if entry is None else removal_cells(entries[strategy], entry, file)
        rows.append(row)
    return table(["Full", *(head for strategy in files for head in (f"{strategy}: removes", "loss - all-Full's"))], rows)


def removal_cells(entries, entry, file):
    before = entries.get(entry["count"] + 1, file["start"])["sources"]
    removed = [layer for layer, (a, b) in enumerate(zip(before, entry["sources"], strict=True)) if a < 0 <= b]
    return [", ".join(map(str, removed)), f"{entry['difference']:+.4f} +- {entry['standard_error']:.4f}"]


def overlap(folder):
    """Overlap of the index sets by distance; of Shared layers with their sources; beside what searches removed."""
    results = Results(folder)
    measured = results.json("overlap/overlap")
    if measured is None:
        return None
    matrix = measured["overlap"]
    parts = [table(["distance", "mean", "lowest", "highest"], by_distance(matrix))]
    greedy, routed = results.json("search/greedy"), results.json("search/routed")
    if greedy:
        parts.append(table(["pattern", "overlap of Shared layers with their sources", "Shared layers whose source overlaps most"],
                           with_sources(matrix, greedy, routed)))  # fmt: skip
        correlation = rank_correlation(*removal_and_overlap(matrix, greedy))
        said = "undefined" if correlation is None else f"{correlation:+.2f}"
        parts.append(f"Rank correlation of a layer's overlap with the layer below and how early greedy removes it: {said}.")
    return "\n\n".join(parts)


def by_distance(matrix):
    rows, distance = [], 1
    while distance < len(matrix):
        values = [matrix[i][i + distance] for i in range(len(matrix) - distance)]
        rows.append([str(distance), f"{sum(values) / len(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}"])
        distance *= 2
    return rows


def with_sources(matrix, greedy, routed):
    layers, rows = num_layers(greedy), []
    for keep in ("1/2", "1/4", "1/8"):
        count = count_of(keep, layers)
        patterns = {"uniform": uniform(keep, layers), "greedy": budgets(greedy).get(count), "routed": budgets(routed).get(count)}
        for name, pattern in patterns.items():
            shared = [(layer, source) for layer, source in enumerate(sources(pattern) if pattern else []) if source >= 0]
            if not shared:
                continue
            full = [layer for layer, source in enumerate(sources(pattern)) if source < 0]
            best = sum(matrix[layer][source] == max(matrix[layer][f] for f in full if f < layer) for layer, source in shared)
            mean = sum(matrix[layer][source] for layer, source in shared) / len(shared)
            rows.append([f"{name} {keep}", f"{mean:.3f}", f"{best} of {len(shared)}"])
    return rows


def removal_and_overlap(matrix, file):
    """For each removed layer: how early (the higher the earlier), and its overlap with the layer below."""
    early, below = [], []
    before = file["start"]["sources"]
    for entry in file["budgets"]:
        for layer, (a, b) in enumerate(zip(before, entry["sources"], strict=True)):
            if a < 0 <= b:
                early.append(entry["count"])
                below.append(matrix[layer][layer - 1])
        before = entry["sources"]
    return early, below


def transfer(folder):
    """Rows: what a pattern was searched on; columns: what it is judged on."""
    results = Results(folder)
    parts = []
    if results.json("transfer/arms") is None:
        return None
    setting = settings(results, "transfer")
    for keep in setting["budgets"]:
        scores = results.scores(f"transfer/eval-{settle(keep)}")
        if not scores:
            continue
        baseline, count = first(scores), count_of(keep, len(sources(first(scores).pattern)))
        rows = [["(all Full)", *transfer_cells(baseline, None, setting["domains"]), ""]]
        for name in ["mixed", "plain", "retrieval", *setting["domains"]]:
            pattern = budgets(results.json(f"transfer/{name}")).get(count)
            if pattern in scores:
                rows.append([name, *transfer_cells(scores[pattern], baseline, setting["domains"]), f"`{pattern}`"])
        head = ["searched on", *(f"loss on {domain}" for domain in ["all", *setting["domains"]]), "4 keys, % right", "pattern"]
        parts.append(f"{keep} of the layers Full:\n\n{table(head, rows)}")
    return "\n\n".join(parts) or None


def transfer_cells(scores, baseline, domains):
    sign = "+" if baseline else ""
    losses = [scores.loss(baseline, chosen) for chosen in [None, *domains.values()]]
    return [*(cell(loss, 4, 1, sign) for loss in losses), cell(scores.task("multi_needle", "right", baseline), 1, 100, sign)]


def calibration(folder):
    """Rows: sequences that a search saw; its agreement with the largest search, and its loss on held-out text, by draw."""
    results = Results(folder)
    largest = results.json("calibration/largest")
    if largest is None:
        return None
    setting = settings(results, "calibration")
    rows = []
    for size in [*(size for size in setting["sizes"] if size < setting["largest"]), setting["largest"]]:
        names = ["largest"] if size == setting["largest"] else [f"{size}-{seed}" for seed in setting["seeds"]]
        files = [file for name in names if (file := results.json(f"calibration/{name}"))]
        if files:
            agreed = "" if size == setting["largest"] else ", ".join("{} of {}".format(*agreement(file, largest)) for file in files)
            rows.append([str(size), agreed, *(held_out(results, files, keep) for keep in setting["budgets"])])
    head = ["sequences", "budgets as the largest search, a draw each", *(f"held-out loss - all-Full's at {keep}" for keep in setting["budgets"])]
    return table(head, rows)


def held_out(results, files, keep):
    scores = results.scores(f"calibration/eval-{settle(keep)}")
    patterns = [budgets(file).get(count_of(keep, num_layers(file))) for file in files]
    return ", ".join(cell(scores[pattern].loss(first(scores))) for pattern in patterns if pattern in scores)


def topk(folder):
    """k by readers against the same k everywhere, under the same pattern."""
    results = Results(folder)
    scores = results.scores("topk/model")
    if not scores:
        return None
    patterns, rows = [pattern for pattern in scores if pattern != first(scores).pattern], []
    for pattern in patterns:
        rows.append([f"`{pattern}`", "the model's k", "", *own_cells(scores[pattern])])
        for rule, (total, exponent) in RULES.items():
            for search_name in settings(results, "topk")["patterns"]:
                under = results.scores(f"topk/{search_name}-{rule}").get(pattern)
                if under is not None:
                    own = allocate(sources(pattern), model_k(results), total, exponent)
                    kept = [f"{layer}: {own[layer]}" for layer, source in enumerate(sources(pattern)) if source < 0]
                    rows.append(["", rule, ", ".join(kept), *loss_cells(under, scores[pattern])])
                    break
    return table(["pattern", "rule", "k of Full layers", *LOSS_HEAD], rows)


def model_k(results):
    return results.json("topk/arms")["index_topk"]


TABLES = {made.__name__: made for made in (search, effort, removal, overlap, transfer, calibration, topk)}
