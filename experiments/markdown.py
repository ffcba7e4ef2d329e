"""Markdown tables and the cells that they share."""


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(estimate, digits=4, scale=1, sign="+"):
    return "" if estimate is None else estimate.text(digits, scale, sign)


def loss_cells(scores, baseline, tasks=("multi_needle", "single_needle")):
    """Difference of the loss on text, then of each task's right answers in points, from `baseline`."""
    return [cell(scores.loss(baseline)), *(cell(scores.task(task, "right", baseline), 1, 100) for task in tasks)]


def own_cells(scores, tasks=("multi_needle", "single_needle")):
    """The same, not as differences: loss, % right."""
    return [cell(scores.loss(), 4, 1, ""), *(cell(scores.task(task, "right"), 1, 100, "") for task in tasks)]


LOSS_HEAD = ["loss, nats a token", "4 keys, % right", "1 key, % right"]
