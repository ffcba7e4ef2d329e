"""How much the index sets of two layers have in common, and whether that says which layers can share.

Paper: Figure 4 and appendix A. The relation to what searches keep and to routed sources is worked out by tables.py.
"""

from pool import Arm


def arms(lab):
    result = lab.result("overlap")
    result.parent.mkdir(parents=True, exist_ok=True)
    yield Arm(
        "overlap", "overlap",
        [lab.command(
            "overlap", lab.options.model, "--text", lab["search_text"], "--context", lab["context"], "--sequences", lab["sequences"],
            "--json", result, "--picture", result.with_suffix(".svg"),
        )],
    )  # fmt: skip
