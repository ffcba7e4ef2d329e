"""Markdown tables and the cells that they share."""


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(estimate, digits=4, scale=1, sign="+"):
    return "" if estimate is None else estimate.text(digits, scale, sign)


TASKS = ("multi_needle", "single_needle")
LOSS_HEAD = ["loss, text", "loss, answers", "4 keys, % right", "1 key, % right"]


def loss_cells(scores, baseline):
    """Under LOSS_HEAD, differences from `baseline`: loss on text and of answers (nats a token), right answers of tasks in points."""
    tasks = (cell(scores.task(task, "right", baseline), 1, 100) for task in TASKS)
    return [cell(scores.loss(baseline)), cell(scores.answers(baseline)), *tasks]


def own_cells(scores):
    """The same, not as differences."""
    tasks = (cell(scores.task(task, "right"), 1, 100, "") for task in TASKS)
    return [cell(scores.loss(), 4, 1, ""), cell(scores.answers(), 4, 1, ""), *tasks]
