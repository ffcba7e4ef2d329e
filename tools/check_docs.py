#!/usr/bin/env python3
"""Checks what the documents name, and that the repository speaks of no one machine.

  - every path in a document (links, `code` and code blocks whose first part is a folder or file of the repository, or a room of
    src/indexcache) exists; <placeholders> and NAMES are not looked up, * matches as in a shell;
  - every `make TARGET` has its target and every `indexcache VERB` in a code block its src/cli/VERB.cpp;
  - no tracked text file names a home or working folder of some machine or a package registry's host, or leaves a to-do mark.

usage: check_docs.py [ROOT] | --self-test
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
MAKE = re.compile(r"(?:^|&& |\$ )make ([a-z][a-z-]*)\b", re.MULTILINE)
VERB = re.compile(r"(?:^|/|\$ )indexcache +([a-z]+)\b", re.MULTILINE)
PLACEHOLDER = re.compile(r"[<>$…{}]|\.\.\.|\b[A-Z]{3,}\b(?!\.md)")
FORBIDDEN = [
    (re.compile(r"(?<![\w.$])/(?:home|root|work|farm|Users|mnt|tmp/bash_jobs)/\w"), "a path of one machine"),
    (re.compile(r"deb\.debian\.org|files\.pythonhosted|pypi\.org/simple"), "a package registry's host"),
    (re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b"), "a to-do mark"),
]


def tracked_files(root):
    listing = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, capture_output=True, text=True
    )
    return [root / name for name in listing.stdout.split("\0") if name and (root / name).is_file()]


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def mentioned_paths(text):
    """(position, path, whether it is a link) for all that may be a path."""
    for match in LINK.finditer(text):
        if "://" not in match[1]:
            yield match.start(1), match[1], True
    blocks = [(m.start(), m.end()) for m in FENCE.finditer(text)]
    for start, end in blocks:
        for word in re.finditer(r"[^\s`'\"=,;()\[\]]+", text[start:end]):
            yield start + word.start(), word[0], False
    for match in CODE.finditer(text):
        if not any(start <= match.start() < end for start, end in blocks):
            for word in re.finditer(r"[^\s'\"=,;()]+", match[1]):
                yield match.start(1) + word.start(), word[0], False


def exists(root, document, path, is_link):
    places = [document.parent] if is_link else [root, root / "src", root / "src/indexcache", document.parent]
    for place in places:
        if "*" in path:
            if any(place.glob(path)):
                return True
        elif (place / path).exists():
            return True
    return False


def check_document(root, document, first_parts, targets):
    text = document.read_text()
    where = document.relative_to(root)
    problems = []
    for position, path, is_link in mentioned_paths(text):
        path = re.sub(r":\d.*$|:$", "", path.removeprefix("./").rstrip(".,:"))
        known = "/" in path and path.split("/")[0] in first_parts or is_link
        if not known or PLACEHOLDER.search(path):
            continue
        if not exists(root, document, path, is_link):
            problems.append(f"{where}:{line_of(text, position)}: names {path}, which does not exist")
    for match in CODE.finditer(text):
        for target in MAKE.findall(match[1]):
            if target not in targets:
                problems.append(f"{where}:{line_of(text, match.start())}: make {target}: the Makefile has no such target")
    for block in FENCE.finditer(text):
        for target in MAKE.findall(block[0]):
            if target not in targets:
                problems.append(f"{where}:{line_of(text, block.start())}: make {target}: the Makefile has no such target")
        for verb in VERB.finditer(block[0]):
            if not (root / f"src/cli/{verb[1]}.cpp").is_file():
                line = line_of(text, block.start() + verb.start(1))
                problems.append(f"{where}:{line}: indexcache {verb[1]}: there is no src/cli/{verb[1]}.cpp")
    return problems


def check(root):
    files = tracked_files(root)
    rooms = root / "src/indexcache"
    first_parts = {f.relative_to(root).parts[0] for f in files}
    first_parts |= {p.name for p in rooms.iterdir() if p.is_dir()} if rooms.is_dir() else set()
    makefile = root / "Makefile"
    targets = set(re.findall(r"^([\w-]+):(?!=)", makefile.read_text(), re.MULTILINE)) if makefile.is_file() else set()
    problems = []
    documents = [f for f in files if f.suffix == ".md"]
    for document in documents:
        problems += check_document(root, document, first_parts, targets)
    for file in files:
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for pattern, what in FORBIDDEN:
            for match in pattern.finditer(text):
                problems.append(f"{file.relative_to(root)}:{line_of(text, match.start())}: names {what}: {match[0]}")
    return problems, len(documents), len(files)


def self_test():
    """Every line of the sample document whose text says `bad` must be a problem, and no other line."""
    document = "\n".join(
        [
            "[good](docs/a.md#part) and `src/indexcache/base/a.h`, `base/a.h:12`, `docs/*.md`, `other/thing`",
            "[bad](docs/none.md)",
            "`base/bad.h`",
            "`docs/bad*.md`",
            "`src/cli/<verb>.cpp` is a placeholder, `make test` a target, `out/file.json` no folder of the repository",
            "`make bad`",
            "```sh",
            "make test && build/cpu/indexcache search models/m --out out/p.json",
            "apt-get install make git  # a package, no target",
            "build/cpu/indexcache bad models/m",
            "tools/bad.sh",
            "```",
            "bad: kept in /" + "home/someone",
            "bad: TO" + "DO",
            "",
        ]
    )
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, text in {
            "README.md": document,
            "docs/a.md": "x\n",
            "src/indexcache/base/a.h": "\n",
            "src/cli/search.cpp": "\n",
            "models/m": "\n",
            "tools/t.sh": "\n",
            "Makefile": "test: x\n",
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        subprocess.run(["git", "init", "-q", root], check=True)
        problems, _, _ = check(root)
        for number, line in enumerate(document.split("\n"), 1):
            found = [p for p in problems if p.startswith(f"README.md:{number}:")]
            if ("bad" in line) != (len(found) == 1):
                failures.append(f"line {number} ({line!r}): found {found}")
        failures += [p for p in problems if not p.startswith("README.md:")]
    return failures


def main(arguments):
    if arguments == ["--self-test"]:
        problems, done = self_test(), "self-test passed"
    else:
        root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
        problems, num_documents, num_files = check(root)
        done = f"{num_documents} documents and {num_files} files name only what exists"
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    print(f"check_docs: {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
