#!/usr/bin/env python3
"""Checks the rules of the house that a script can see (docs/DESIGN.md, "Rooms and arrows").

The table is the indexcache_room(...) calls of src/indexcache/CMakeLists.txt:
  - a room includes headers only of itself and of the rooms it DEPENDS on; the table has no cycle;
  - Torch headers only in rooms declared TORCH, which Torch-free rooms do not depend on; never in kernels/ nor in an op's
    *_params.h, *_ref.cpp, *_cpu.cpp and *_cuda.cu; autograd's headers only in train/; <torch/torch.h> and <ATen/ATen.h> nowhere;
  - one op never includes another;
  - the library never prints, exits or reads the environment.

usage: check_arrows.py [ROOT] | --self-test
"""

import re
import sys
import tempfile
from pathlib import Path

ROOM = re.compile(r"^\s*indexcache_room\(([^)]*)\)", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SOURCES = {".h", ".cpp", ".cu", ".cuh"}
TORCH = ("torch/", "ATen/", "c10/")
TORCH_WHOLE = ("torch/torch.h", "torch/all.h", "ATen/ATen.h")
AUTOGRAD = ("torch/csrc/autograd", "torch/csrc/api", "torch/nn", "torch/optim", "torch/autograd.h")
TORCH_FREE_FILES = re.compile(r"(_params\.h|_ref\.cpp|_cpu\.cpp|_cuda\.cu)$")
FORBIDDEN_CALLS = re.compile(r"\bstd::c(?:out|err)\b|\bgetenv\s*\(|(?<!_)\bexit\s*\(|(?<![:\w])printf\s*\(|\bputs\s*\(")


class Room:
    def __init__(self, declaration):
        words = declaration.split()
        self.name = words[0]
        self.torch = "TORCH" in words
        self.depends = []
        section = None
        for word in words[1:]:
            if word in ("TORCH", "DEPENDS", "LIBRARIES"):
                section = word
            elif section == "DEPENDS":
                self.depends.append(word)


def read_table(root):
    text = (root / "src/indexcache/CMakeLists.txt").read_text()
    text = re.sub(r"#.*", "", text)
    rooms = {}
    for declaration in ROOM.findall(text):
        room = Room(declaration)
        rooms[room.name] = room
    return rooms


def check_table(rooms):
    problems = []
    if not rooms:
        problems.append("src/indexcache/CMakeLists.txt: expected indexcache_room(...) calls, found none")
    declared = set()
    for room in rooms.values():  # in the order of the file: a room stands below all it depends on, so there is no cycle
        for name in room.depends:
            where = f"src/indexcache/CMakeLists.txt: room {room.name}"
            if name not in declared:
                problems.append(f"{where}: expected its dependency {name} to be declared above it")
            elif rooms[name].torch and not room.torch:
                problems.append(f"{where}: a Torch-free room depends on {name}, which is TORCH")
        declared.add(room.name)
    return problems


def check_file(root, path, rooms):
    """Problems of one file under src/indexcache, as lines."""
    relative = path.relative_to(root)
    inside = path.relative_to(root / "src/indexcache").parts
    room = rooms.get(inside[0])
    if room is None:
        return [f"{relative}: folder {inside[0]} is no room of src/indexcache/CMakeLists.txt"]
    torch_free_file = room.name == "kernels" or TORCH_FREE_FILES.search(path.name)
    problems = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{relative}:{number}"
        match = INCLUDE.match(line)
        if not match:
            if FORBIDDEN_CALLS.search(line.split("//")[0]):
                problems.append(f"{where}: the library does not print, exit or read the environment")
            continue
        header = match[2]
        if header.startswith(TORCH):
            if not room.torch:
                problems.append(f"{where}: Torch header <{header}> in the Torch-free room {room.name}")
            elif torch_free_file:
                problems.append(f"{where}: Torch header <{header}> in a file that must be Torch-free")
            elif header in TORCH_WHOLE:
                problems.append(f"{where}: <{header}> is all of Torch; include the headers of what is used")
            elif header.startswith(AUTOGRAD) and room.name != "train":
                problems.append(f"{where}: autograd header <{header}> outside train/")
        elif header.startswith("cli/"):
            problems.append(f"{where}: the library includes the command line's {header}")
        elif header.startswith("indexcache/"):
            target = header.split("/")
            if not (root / "src" / header).is_file():
                problems.append(f"{where}: {header} does not exist")
            elif target[1] != room.name and target[1] not in room.depends:
                problems.append(f"{where}: {room.name} includes {header} but does not depend on {target[1]}")
            elif target[1] == "ops" == room.name and len(target) > 3 and target[2] != inside[1]:
                problems.append(f"{where}: op {inside[1]} includes op {target[2]}")
        elif match[1] == '"':
            problems.append(f'{where}: "{header}": expected a path from src/, such as "indexcache/base/error.h"')
    return problems


def check(root):
    rooms = read_table(root)
    problems = check_table(rooms)
    files = sorted(p for p in (root / "src/indexcache").rglob("*") if p.suffix in SOURCES)
    for path in files:
        problems += check_file(root, path, rooms)
    return problems, len(files), len(rooms)


SELF_TEST_TABLE = """# a comment with indexcache_room(nothing)
indexcache_room(base LIBRARIES fmt::fmt)
indexcache_room(kernels DEPENDS base)
indexcache_room(ops TORCH DEPENDS kernels base)
indexcache_room(search DEPENDS base)
indexcache_room(train TORCH DEPENDS ops
                base)
"""

# (file, its text, what the problem must say; None: no problem)
SELF_TEST_FILES = [
    ("base/a.h", "#include <string>\n", None),
    ("base/b.h", '#include "indexcache/search/s.h"\n', "does not depend on search"),
    ("base/c.cpp", "#include <ATen/core/Tensor.h>\n", "Torch-free room base"),
    ("base/d.cpp", '#include "indexcache/base/none.h"\n', "does not exist"),
    ("base/e.cpp", 'void f() { printf("x"); }\n', "does not print"),
    ("base/f.cpp", 'const char* f() { return getenv("X"); }  // why\n', "does not print"),
    ("base/g.cpp", "// printf() is not called here\nvoid f() { fmt::print(stream, 1); _exit(1); }\n", None),
    ("base/h.cpp", '#include "a.h"\n', "expected a path from src/"),
    ("base/i.cpp", '#include "cli/options.h"\n', "command line's"),
    ("search/s.h", '#include "indexcache/base/a.h"\n', None),
    ("kernels/k.h", "#include <c10/util/Half.h>\n", "Torch-free room kernels"),
    ("ops/one/one.h", "#include <ATen/core/Tensor.h>\n", None),
    ("ops/one/one_params.h", "#include <ATen/core/Tensor.h>\n", "must be Torch-free"),
    ("ops/one/one_cuda.cu", "#  include <torch/types.h>\n", "must be Torch-free"),
    ("ops/two/two.cpp", '#include "indexcache/ops/one/one.h"\n', "op two includes op one"),
    ("ops/two/three.cpp", "#include <torch/torch.h>\n", "all of Torch"),
    ("ops/two/four.cpp", "#include <torch/csrc/autograd/variable.h>\n", "outside train/"),
    ("train/t.cpp", "#include <torch/csrc/autograd/variable.h>\n#include <indexcache/ops/one/one.h>\n", None),
    ("unknown/u.h", "\n", "is no room"),
]


def self_test():
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        house = root / "src/indexcache"
        for name, text, _ in SELF_TEST_FILES:
            (house / name).parent.mkdir(parents=True, exist_ok=True)
            (house / name).write_text(text)
        (house / "CMakeLists.txt").write_text(SELF_TEST_TABLE)
        problems, _, _ = check(root)
        for name, _, expected in SELF_TEST_FILES:
            found = [p for p in problems if f"src/indexcache/{name}:" in p]
            if expected is None and found or expected is not None and (len(found) != 1 or expected not in found[0]):
                failures.append(f"{name}: expected {expected}, found {found}")
    for table, expected in [
        ("", "found none"),
        ("indexcache_room(a DEPENDS b)\nindexcache_room(b DEPENDS a)", "dependency b to be declared above"),
        ("indexcache_room(a TORCH)\nindexcache_room(b DEPENDS a)", "Torch-free room depends on a"),
    ]:
        rooms = {room.name: room for room in map(Room, ROOM.findall(table))}
        found = check_table(rooms)
        if len(found) != 1 or expected not in found[0]:
            failures.append(f"table {table!r}: expected {expected}, found {found}")
    return failures


def main(arguments):
    if arguments == ["--self-test"]:
        problems, done = self_test(), f"self-test of {len(SELF_TEST_FILES)} files passed"
    else:
        root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
        problems, num_files, num_rooms = check(root)
        done = f"{num_files} files in {num_rooms} rooms keep the arrows"
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    print(f"check_arrows: {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
