#!/usr/bin/env python3
"""Turns the results of experiments into the tables of a document.

In the document, between `<!-- table NAME of FOLDER -->` and `<!-- end of table -->`, stands the table NAME of the results in FOLDER;
this writes it anew. What has not been run is said in its place. Errors are standard errors: over windows or prompts, of paired
differences where it is a difference.

usage: tables.py [--check] [DOCUMENT]     (docs/experiments.md; --check: writes nothing, fails if a table is not as the results are)
"""

import re
import sys
from pathlib import Path

import tables_of_searches
import tables_of_training

TABLE = re.compile(r"(<!-- table (\S+) of (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
NOT_RUN = "Not run yet."


def with_tables(document, root):
    """The document's text with every table made from the results under `root`."""

    def replace(match):
        makers = tables_of_searches.TABLES | tables_of_training.TABLES
        if match[2] not in makers:
            raise ValueError(f"table {match[2]}: expected one of {', '.join(sorted(makers))}")
        return f"{match[1]}{makers[match[2]](root / match[3]) or NOT_RUN}\n{match[4]}"

    return TABLE.sub(replace, document)


def main(arguments):
    check = "--check" in arguments
    names = [argument for argument in arguments if argument != "--check"]
    root = Path(__file__).resolve().parent.parent
    path = Path(names[0]) if names else root / "docs/experiments.md"
    old = path.read_text()
    new = with_tables(old, root)
    if check and new != old:
        print(f"{path}: its tables are not those of the results; run experiments/tables.py", file=sys.stderr)
        return 1
    if not check:
        path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
