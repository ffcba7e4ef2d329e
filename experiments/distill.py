"""What sharing costs after training for it: patterns x index losses, judged against the all-Full model trained alike.

Paper: Table 3 (training-aware; the row "w/o cross-layer loss" is `own`), on 1/2 and 1/4 there. Patterns other than uniform ones at 1/4,
1/8, and training for a routed pattern are not in the paper. Arms have equal steps and the same sequences, but for the pair of the
arm `timed`, which has equal time: the two train side by side, so that both have the same share of the device.
"""

import json
import shlex
import shutil
from pathlib import Path

from lab import read_documents, sample_documents, write_documents
from pool import Arm

# (name, pattern: uniform:1/n or (search, budget), index loss, importance). Those named routed are of the search `screened`.
RUNS = [
    ("full", "full", "multi", 1),
    ("uniform-1-4-multi", "uniform:1/4", "multi", 1),
    ("uniform-1-4-own", "uniform:1/4", "own", 1),
    ("routed-1-4-multi", ("screened", "1/4"), "multi", 1),
    ("greedy-1-4-multi", ("greedy", "1/4"), "multi", 2),
    ("uniform-1-8-multi", "uniform:1/8", "multi", 2),
    ("uniform-1-8-own", "uniform:1/8", "own", 2),
    ("routed-1-8-multi", ("screened", "1/8"), "multi", 2),
    ("greedy-1-8-multi", ("greedy", "1/8"), "multi", 2),
    ("routed-1-4-own", ("screened", "1/4"), "own", 3),
    ("routed-lazy-1-4-multi", ("routed-lazy", "1/4"), "multi", 3),
    ("uniform-1-2-multi", "uniform:1/2", "multi", 3),
    ("uniform-1-2-own", "uniform:1/2", "own", 3),
    ("greedy-1-2-multi", ("greedy", "1/2"), "multi", 3),
    ("routed-1-2-multi", ("screened", "1/2"), "multi", 3),
]
AGAIN = ["full", "uniform-1-4-multi", "uniform-1-4-own", "routed-1-4-multi"]  # with other seeds
TIMED = ["uniform-1-4-multi", "uniform-1-4-own"]
KEPT = {"full", "routed-1-4-multi"}  # what the experiment `alternate` goes on from


def arms(lab):
    yield Arm("distill", "text", [lambda: sample(lab)], importance=0)
    for name, pattern, loss, importance in RUNS:
        yield training(lab, name, pattern, loss, importance=importance)
    yield Arm("distill", "untrained", [lambda: judge_untrained(lab)], importance=2)
    yield timed(lab)
    for seed in lab["seeds"]:
        for name, pattern, loss, _ in RUNS:
            if name in AGAIN:
                yield training(lab, f"{name}-seed-{seed}", pattern, loss, importance=5, seed=seed)


def sample(lab):
    if not lab.options.data:
        raise ValueError("--data: expected the training text, found none")
    write_documents(text(lab), sample_documents(read_documents(lab.options.data), lab["text_megabytes"]))


def text(lab):
    return lab.work / "distill" / "train.jsonl"


def training(lab, name, pattern, loss, *, importance, seed=1, model=None, needs=(), experiment="distill"):
    """Distils for a pattern, judges the result under it, keeps the curves; the weights only for `alternate`."""
    steps = [
        lambda: shutil.rmtree(folder(lab, experiment, name), ignore_errors=True),
        lambda: distil(lab, experiment, name, pattern, loss, seed=seed, model=model),
        *judge(lab, experiment, name),
    ]
    return Arm(experiment, name, steps, needs=["distill/text", *needs, *searched(lab, pattern)], importance=importance)


def timed(lab):
    """Two trainings at once, with budgets in minutes."""
    runs = [(f"{name}-timed", pattern, loss) for name, pattern, loss, _ in RUNS if name in TIMED]

    def both():
        for name, _, _ in runs:
            shutil.rmtree(folder(lab, "distill", name), ignore_errors=True)
        first, second = (
            shlex.join(map(str, distil(lab, "distill", name, pattern, loss, minutes=lab["timed_minutes"]))) for name, pattern, loss in runs
        )
        return ["bash", "-c", f"{first} & {second}; code=$?; wait $! && exit $code"]

    steps = [both, *(step for name, _, _ in runs for step in judge(lab, "distill", name))]
    return Arm("distill", "timed", steps, needs=["distill/text"], importance=4)


def folder(lab, experiment, name):
    return lab.work / experiment / name


def distil(lab, experiment, name, pattern, loss, seed=1, minutes=None, model=None):
    run = folder(lab, experiment, name)
    config = run.with_suffix(".json")
    write_config(lab, config, loss, seed, minutes)
    return lab.command(
        "distill", model or lab.options.model, f"--pattern={resolve(lab, pattern)}", "--config", config, "--data", text(lab), "--out", run
    )


def judge(lab, experiment, name):
    """The steps after a training."""
    run = folder(lab, experiment, name)

    def finish():
        curves = lab.results / experiment / f"{name}-curves.json"
        curves.write_text(json.dumps(summary(run / "curves.jsonl"), indent=1) + "\n")
        (run / "checkpoint.safetensors").unlink(missing_ok=True)
        if not (name in KEPT and "alternate" in lab.options.names):
            shutil.rmtree(run)

    return [lab.evaluate(name, model=run / "model", experiment=experiment), finish]


def searched(lab, pattern):
    """The search of this run that a pattern waits for, if there is one."""
    return [f"search/{pattern[0]}"] if isinstance(pattern, tuple) and "search" in lab.options.names else []


def resolve(lab, pattern):
    if callable(pattern):
        return pattern()
    if isinstance(pattern, str):
        return pattern
    search, keep = pattern
    found = lab.found(f"search/{search}", keep)
    if found is None:
        raise ValueError(f"no pattern at {keep} in search/{search}.json: run the experiment search too, or give --patterns FOLDER")
    return found


def write_config(lab, path, loss, seed, minutes):
    """The config that the setting `config` names, with this arm's loss, seed and budgets."""
    config = json.loads(Path(lab["config"]).read_text())
    config |= {"seed": seed, "index_loss": loss, "checkpoint_seconds": 0}
    budgets = [lab["warmup_tokens"], lab["sparse_tokens"]]
    for stage, tokens in zip(config["stages"], budgets, strict=True):
        phase = {"context": lab["context"], "sequences": lab["sequences_a_step"]}
        share = tokens / sum(budgets)
        stage["phases"] = [phase | ({"minutes": minutes * share} if minutes else {"tokens": tokens})]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1) + "\n")


def summary(curves):
    """Of each stage: steps, tokens, seconds, and its last record's losses."""
    stages = []
    steps = tokens = seconds = 0
    records = [json.loads(line) for line in curves.read_text().splitlines()]
    for stage in dict.fromkeys(record["stage"] for record in records):
        last = [record for record in records if record["stage"] == stage][-1]
        entry = {"stage": stage, "steps": last["step"] - steps, "tokens": last["tokens"] - tokens, "seconds": last["seconds"] - seconds}
        stages.append(entry | {key: last[key] for key in ("loss", "answer_loss", "kl") if key in last})
        steps, tokens, seconds = last["step"], last["tokens"], last["seconds"]
    return {"stages": stages}


def judge_untrained(lab):
    patterns = []
    for _, pattern, _, _ in RUNS:
        patterns.append(pattern if isinstance(pattern, str) else lab.found(f"search/{pattern[0]}", pattern[1]))
    return lab.evaluate("untrained", patterns)
