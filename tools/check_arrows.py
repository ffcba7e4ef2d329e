#!/usr/bin/env python3
"""Checks the rules of the house that a script can see (docs/DESIGN.md, "Rooms and arrows").

The table is the indexcache_room(...) calls of src/indexcache/CMakeLists.txt:
  - a room includes headers only of itself and of the rooms it DEPENDS on; the table has no cycle;
  - the table of rooms in docs/DESIGN.md has a row for each, and says of the same ones that they see no Torch;
  - Torch headers only in rooms declared TORCH, which Torch-free rooms do not depend on; never in kernels/, fuzz/ nor in an op's
    *_params.h, *_kernels.h, *_ref.cpp, *_cpu.cpp, *_highway.cpp, *_avx512_bf16.cpp and *_cuda.cu; autograd's headers only in
    train/ (of the library); <torch/torch.h> and <ATen/ATen.h> nowhere, src/cli, src/torch_ops, tests, bench and fuzz included;
  - one op never includes another;
  - the library never prints to stdout, exits or reads the environment.

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
TORCH_FREE_FILES = re.compile(r"(_params\.h|_kernels\.h|_ref\.cpp|_cpu\.cpp|_highway\.cpp|_avx512_bf16\.cpp|_cuda\.cu)$")
# fmt::print with a literal first prints to stdout; with a stream first it says where (INDEXCACHE_ASSERT, Progress: stderr).
FORBIDDEN_CALLS = re.compile(
    r"\bstd::(?:cout|cerr|clog)\b|\bstdout\b|\b(?:secure_)?getenv\s*\(|(?<!_)\bexit\s*\(|\bv?f?printf\s*\(|\bf?puts\s*\(|"
    r"\bputchar\s*\(|\bprint(?:ln)?\s*\(\s*(?:R?\"|FMT_STRING)"
)
OUTSIDE = ("src/cli", "src/torch_ops", "tests", "bench", "fuzz")  # what is no room, and may print
DESIGN_ROW = re.compile(r"^\| `(\w+)/` \|.*\| ([^|]+) \|$", re.MULTILINE)


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


def check_design(root, rooms):
    """The table of docs/DESIGN.md against the rooms."""
    rows = dict(DESIGN_ROW.findall((root / "docs/DESIGN.md").read_text()))
    problems = []
    for name in rooms.keys() | rows.keys():
        where = f"docs/DESIGN.md: room {name}"
        if name not in rows:
            problems.append(f"{where}: expected a row in the table of rooms, found none")
        elif name not in rooms:
            problems.append(f"{where}: a row for a room that src/indexcache/CMakeLists.txt does not declare")
        elif (rows[name] != "no") != rooms[name].torch:
            problems.append(f"{where}: the table says Torch: {rows[name]}; the declaration says {'TORCH' if rooms[name].torch else 'no'}")
    return sorted(problems)


def includes(text):
    """(line number, the match) of every #include."""
    return [(number, match) for number, line in enumerate(text.splitlines(), 1) if (match := INCLUDE.match(line))]


def check_outside(root, path):
    """Problems of one file of the command, the tests, the benches or the fuzz targets, as lines."""
    relative = path.relative_to(root)
    problems = []
    for number, match in includes(path.read_text()):
        header = match[2]
        if header in TORCH_WHOLE:
            problems.append(f"{relative}:{number}: <{header}> is all of Torch; include the headers of what is used")
        elif header.startswith(TORCH) and relative.parts[0] == "fuzz":
            problems.append(f"{relative}:{number}: Torch header <{header}> in a fuzz target, which is built without Torch")
    return problems


def check_calls(relative, text):
    code = "\n".join("" if INCLUDE.match(line) else line.split("//")[0] for line in text.splitlines())
    lines = {code.count("\n", 0, match.start()) + 1 for match in FORBIDDEN_CALLS.finditer(code)}
    return [f"{relative}:{line}: the library does not print, exit or read the environment" for line in sorted(lines)]


def check_file(root, path, rooms):
    """Problems of one file under src/indexcache, as lines."""
    relative = path.relative_to(root)
    inside = path.relative_to(root / "src/indexcache").parts
    room = rooms.get(inside[0])
    if room is None:
        return [f"{relative}: folder {inside[0]} is no room of src/indexcache/CMakeLists.txt"]
    torch_free_file = room.name == "kernels" or TORCH_FREE_FILES.search(path.name)
    text = path.read_text()
    problems = check_calls(relative, text)
    for number, match in includes(text):
        where = f"{relative}:{number}"
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
    problems = check_table(rooms) + check_design(root, rooms)
    inside = sorted(p for p in (root / "src/indexcache").rglob("*") if p.suffix in SOURCES)
    for path in inside:
        problems += check_file(root, path, rooms)
    outside = sorted(p for folder in OUTSIDE for p in (root / folder).rglob("*") if p.suffix in SOURCES)
    for path in outside:
        problems += check_outside(root, path)
    return problems, len(inside) + len(outside), len(rooms)


SELF_TEST_TABLE = """# a comment with indexcache_room(nothing)
indexcache_room(base LIBRARIES fmt::fmt)
indexcache_room(kernels DEPENDS base)
indexcache_room(ops TORCH DEPENDS kernels base)
indexcache_room(search DEPENDS base)
indexcache_room(train TORCH DEPENDS ops
                base)
"""

SELF_TEST_DESIGN = """| room | what it holds | Torch |
|---|---|---|
| `base/` | errors | no |
| `ops/` | one folder an op: `a`, `b` | tensor-facing file only |
| `search/` | strategies | yes |
| `train/` | training | no |
| `attic/` | what was left | no |
"""

# (file, its text, what the problem must say; None: no problem)
SELF_TEST_FILES = [
    ("base/a.h", "#include <string>\n", None),
    ("base/b.h", '#include "indexcache/search/s.h"\n', "does not depend on search"),
    ("base/c.cpp", "#include <ATen/core/Tensor.h>\n", "Torch-free room base"),
    ("base/d.cpp", '#include "indexcache/base/none.h"\n', "does not exist"),
    ("base/e.cpp", 'void f() { printf("x"); }\n', "does not print"),
    ("base/f.cpp", 'const char* f() { return getenv("X"); }  // why\n', "does not print"),
    ("base/g.cpp", "// printf() is not called here\nvoid f() { fmt::print(stream, 1); _exit(1); std::snprintf(b, 1, x); }\n", None),
    ("base/j.cpp", 'void f() { std::printf("x"); }\n', "does not print"),
    ("base/k.cpp", "void f() { fprintf(file, x); }\n", "does not print"),
    ("base/l.cpp", "void f() { std::puts(x); }\n", "does not print"),
    ("base/m.cpp", 'void f() { fmt::print("x"); }\n', "does not print"),
    ("base/n.cpp", 'void f() {\n  fmt::print(\n      "{}", 1);\n}\n', "n.cpp:2: the library does not print"),
    ("base/o.cpp", 'const char* f() { return secure_getenv("X"); }\n', "does not print"),
    ("base/p.cpp", "void f() { std::fwrite(x, 1, 1, stdout); }\n", "does not print"),
    ("base/q.cpp", "void f() { std::exit(1); }\n", "does not print"),
    ("base/r.cpp", 'void f() { fmt::print(stderr, "x"); fmt::format("x"); }\n', None),
    ("base/h.cpp", '#include "a.h"\n', "expected a path from src/"),
    ("base/i.cpp", '#include "cli/options.h"\n', "command line's"),
    ("search/s.h", '#include "indexcache/base/a.h"\n', None),
    ("kernels/k.h", "#include <c10/util/Half.h>\n", "Torch-free room kernels"),
    ("ops/one/one.h", "#include <ATen/core/Tensor.h>\n", None),
    ("ops/one/one_params.h", "#include <ATen/core/Tensor.h>\n", "must be Torch-free"),
    ("ops/one/one_cuda.cu", "#  include <torch/types.h>\n", "must be Torch-free"),
    ("ops/one/one_highway.cpp", "#include <c10/util/Half.h>\n", "must be Torch-free"),
    ("ops/one/one_avx512_bf16.cpp", "#include <c10/util/Half.h>\n", "must be Torch-free"),
    ("ops/one/one_kernels.h", "#include <c10/util/Half.h>\n", "must be Torch-free"),
    ("ops/two/two.cpp", '#include "indexcache/ops/one/one.h"\n', "op two includes op one"),
    ("ops/two/three.cpp", "#include <torch/torch.h>\n", "all of Torch"),
    ("ops/two/four.cpp", "#include <torch/csrc/autograd/variable.h>\n", "outside train/"),
    ("train/t.cpp", "#include <torch/csrc/autograd/variable.h>\n#include <indexcache/ops/one/one.h>\n", None),
    ("unknown/u.h", "\n", "is no room"),
    ("../cli/verb.cpp", '#include <torch/torch.h>\nvoid f() { fmt::print("x"); }\n', "all of Torch"),
    ("../cli/other.cpp", "#include <ATen/ops/cat.h>\n", None),
    ("../../tests/ops/one_test.cpp", "#include <ATen/ATen.h>\n", "all of Torch"),
    ("../../bench/ops/one_bench.cpp", "#include <torch/all.h>\n", "all of Torch"),
    ("../../fuzz/one_fuzz.cpp", "#include <ATen/core/Tensor.h>\n", "built without Torch"),
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
        (root / "docs").mkdir()
        (root / "docs/DESIGN.md").write_text(SELF_TEST_DESIGN)
        problems, _, _ = check(root)
        for name, _, expected in SELF_TEST_FILES:
            place = (house / name).resolve().relative_to(root.resolve())
            found = [p for p in problems if p.startswith(f"{place}:")]
            if expected is None and found or expected is not None and (len(found) != 1 or expected not in found[0]):
                failures.append(f"{name}: expected {expected}, found {found}")
    for name, expected in [
        ("base", None),
        ("kernels", "expected a row"),
        ("ops", None),
        ("search", "the table says Torch: yes; the declaration says no"),
        ("train", "the table says Torch: no; the declaration says TORCH"),
        ("attic", "a row for a room"),
    ]:
        found = [p for p in problems if p.startswith(f"docs/DESIGN.md: room {name}:")]
        if expected is None and found or expected is not None and (len(found) != 1 or expected not in found[0]):
            failures.append(f"docs/DESIGN.md, room {name}: expected {expected}, found {found}")
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
