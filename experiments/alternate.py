"""Search, distil, search again on the distilled model, distil again: against distilling twice for the first pattern.

Not in the paper. Goes on from the models of the experiment `distill` (routed 1/4, and all-Full, which both are judged against), with
other training sequences; all indexers are still in the distilled folder, and the second search may keep any of them.
"""

import json
import shutil

from distill import training
from pool import Arm

FIRST, FULL = "routed-1-4-multi", "full"
SEED = 11  # of the second round's sequences


def arms(lab):
    if "distill" not in lab.options.names:
        raise ValueError("the experiment alternate goes on from the models of the experiment distill: name both")
    for name in (FIRST, FULL):
        yield Arm("alternate", f"open-{name}", [lambda name=name: open_all(lab, name)], needs=[f"distill/{name}"], importance=4)
    opened = {name: lab.work / "alternate" / f"opened-{name}" for name in (FIRST, FULL)}
    yield Arm(
        "alternate", "search", [lab.search("search", lab["strategy"], "--keep", lab["keep"], model=opened[FIRST])],
        needs=[f"alternate/open-{FIRST}"], importance=4,
    )  # fmt: skip
    second = [
        ("full-twice", "full", FULL, []),
        ("same-pattern", lambda: schedule(lab), FIRST, []),
        ("new-pattern", lambda: lab.found("alternate/search", lab["keep"]), FIRST, ["alternate/search"]),
    ]
    for name, pattern, start, needs in second:
        yield training(
            lab, name, pattern, "multi", importance=4, seed=SEED, model=opened[start],
            needs=[f"alternate/open-{start}", *needs], experiment="alternate",
        )  # fmt: skip


def schedule(lab):
    """The pattern that the first round was trained for."""
    return json.loads(lab.result(FIRST).with_name(f"{FIRST}-pattern.json").read_text())["pattern"]


def open_all(lab, name):
    """A copy of the distilled folder whose config says nothing of a schedule, so that all of its indexers count."""
    opened = lab.work / "alternate" / f"opened-{name}"
    shutil.rmtree(opened, ignore_errors=True)
    shutil.copytree(lab.work / "distill" / name / "model", opened)
    config = json.loads((opened / "config.json").read_text())
    for key in ("indexer_types", "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset", "indexcache_sources"):
        config.pop(key, None)
    (opened / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    evaluated = json.loads((lab.results / "distill" / f"{name}.json").read_text())
    written = lab.result(name).with_name(f"{name}-pattern.json")
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps({"pattern": evaluated["patterns"][0]["pattern"]}) + "\n")
