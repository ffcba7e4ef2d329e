"""A pattern found on one kind of text, judged on others.

Paper: section 3.2 says that the ranking of layers is stable over calibration sets, without figures; calibration there is
in-distribution. `plain` is running text alone, `retrieval` generated retrieval alone, `mixed` half of each; the domains are running text.
"""

from lab import read_documents, write_documents
from pool import Arm


def kinds(lab):
    """name -> (text, or None for the whole one, and the share of retrieval)."""
    return {"mixed": (None, 0.5), "plain": (None, 0), "retrieval": (None, 1)} | {
        domain: (lab.work / "transfer" / f"{domain}.jsonl", 0) for domain in lab["domains"]
    }


def arms(lab):
    for name, (text, tasks) in kinds(lab).items():
        prepare = [] if text is None else [choose(lab, name, text)]
        yield Arm("transfer", name, [*prepare, lab.search(name, lab["strategy"], text=text, tasks=tasks)], importance=3)
    after = [f"transfer/{name}" for name in kinds(lab)]
    for keep in lab["budgets"]:
        yield Arm("transfer", f"eval-{keep.replace('/', '-')}", [judge(lab, keep)], after=after, importance=3)


def choose(lab, domain, path):
    def step():
        components = lab["domains"][domain]
        documents = [d for d in read_documents(lab["search_text"]) if d["source"].split("/")[0] in components]
        write_documents(path, documents)

    return step


def judge(lab, keep):
    def command():
        patterns = [lab.found(f"transfer/{name}", keep) for name in kinds(lab)]
        return lab.evaluate(f"eval-{keep.replace('/', '-')}", patterns)

    return command
