#!/usr/bin/env python3
"""Runs experiments: experiments/run.py search overlap --device cuda --minutes 7 ... (README.md lists them).

All arms of the named experiments go through one pool (pool.py). Results lie in OUT/<experiment>/*.json as soon as they exist, what
became of each arm in OUT/<experiment>/arms.json, and all of them, with numbers of 7 digits, in the one file --bundle.
"""

import argparse
import dataclasses
import fnmatch
import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

from lab import Lab
from pool import Pool

EXPERIMENTS = ["search", "overlap", "transfer", "calibration", "distill", "alternate", "topk"]
BUNDLE_SECONDS = 20  # between two bundles while arms run


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=EXPERIMENTS, metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--indexcache", default="build/cpu/indexcache", help="the command (default: %(default)s)")
    parser.add_argument("--model", default="models/small-dsa", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--data", help="training text, for distill and alternate")
    parser.add_argument("--patterns", action="append", default=[], help="results of an earlier run, where search/*.json are looked for too")
    parser.add_argument("--out", default="out/experiments", help="results (default: %(default)s)")
    parser.add_argument("--work", default="out/experiments-work", help="what is not kept: models, logs (default: %(default)s)")
    parser.add_argument("--bundle", help="also write all results into this .tar.gz")
    parser.add_argument("--minutes", type=float, default=600, help="after so many no arm starts (default: %(default)s)")
    parser.add_argument("--end-minutes", type=float, help="after so many all is stopped (default: --minutes and a tenth)")
    parser.add_argument("--scale", type=float, default=1, help="times sequences, windows, prompts, training tokens (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="[EXPERIMENT.]KEY=VALUE", help="a setting: settings.json, EXPERIMENT.json")
    parser.add_argument("--jobs", type=int, default=1, help="arms at once (default: %(default)s)")
    parser.add_argument("--gpus", type=lambda text: [int(number) for number in text.split(",")], default=[], metavar="N,N,...",
                        help="GPUs to spread arms over (default: as the command chooses)")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads of each (default: the cores by the jobs)")
    parser.add_argument("--only", action="append", metavar="ARM", help="only these arms (EXPERIMENT/NAME, * as in a shell) and what they need")
    parser.add_argument("--list", action="store_true", help="name the arms in the order in which they start, and end")
    options = parser.parse_args(arguments)
    options.end_minutes = options.end_minutes or 1.1 * options.minutes
    options.threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    return options


def chosen(arms, patterns, folders=()):
    """The arms that a pattern names, with all that they need, but for searches whose result lies in one of the folders already."""
    by_key = {arm.key: arm for arm in arms}
    keys = [key for key in by_key if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)]
    if not keys:
        raise ValueError(f"--only {' '.join(patterns)}: expected names among {', '.join(by_key)}, found none")
    there = {key for key in by_key if key.startswith("search/") and any((Path(folder) / f"{key}.json").exists() for folder in folders)}
    for key in keys:  # grows
        keys += [other for other in by_key[key].needs if other not in keys and other not in there]
    return [
        dataclasses.replace(arm, needs=[n for n in arm.needs if n in keys], after=[a for a in arm.after if a in keys])
        for arm in arms
        if arm.key in keys
    ]


def device_name(device):
    if device == "cuda":
        names = output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "unknown"
        return ", ".join(dict.fromkeys(names.splitlines()))
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else None
    return found[1] if found else platform.processor()


def commit(indexcache):
    """That the command was built from."""
    return (output(indexcache, "--version") or "unknown").split()[-1]


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return {key: rounded(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def bundle(results, path):
    """Every result so far in one file; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with tarfile.open(temporary, "w:gz") as tar:
        for file in sorted(results.glob("*/*")):
            content = file.read_bytes()
            if file.suffix == ".json":
                content = json.dumps(rounded(json.loads(content)), separators=(",", ":")).encode() + b"\n"
            elif file.suffix != ".svg":
                continue
            info = tarfile.TarInfo(str(file.relative_to(results)))
            info.size, info.mtime = len(content), int(file.stat().st_mtime)
            tar.addfile(info, BytesIO(content))
    temporary.replace(path)


class Bundler:
    """Bundles when an arm has ended, but not all the time."""

    def __init__(self, options):
        self.results, self.path, self.last = Path(options.out), options.bundle and Path(options.bundle), 0

    def __call__(self, _arm=None, now=False):
        if self.path and (now or time.monotonic() - self.last > BUNDLE_SECONDS):
            bundle(self.results, self.path)
            self.last = time.monotonic()


def main(arguments):
    options = parse(arguments)
    labs = {name: Lab(name, options) for name in options.names}
    arms = [arm for name, lab in labs.items() for arm in importlib.import_module(name).arms(lab)]
    if options.only:
        arms = chosen(arms, options.only, [options.out, *options.patterns])
    common = {"device": device_name(options.device), "commit": commit(options.indexcache), "scale": options.scale,
              "jobs": options.jobs, "gpus": options.gpus, "minutes": options.minutes}  # fmt: skip
    about = {name: {**common, "index_topk": lab.model_config["index_topk"], "settings": lab.settings} for name, lab in labs.items()}
    bundler = Bundler(options)
    logs = Path(options.work) / "logs"
    pool = Pool(arms, options.out, logs, options.jobs, options.minutes, options.end_minutes, about, bundler, options.gpus)
    if options.list:
        print("\n".join(f"{arm.importance} {arm.key}" for arm in pool.arms))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: pool.stop())
    well = pool.run()
    bundler(now=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
