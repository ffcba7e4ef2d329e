"""Runs the arms of experiments side by side, on one device or on several GPUs of one machine, within a limit of time.

An arm is a list of steps, one after another: a command, or a function that does something small and may return a command (so that
what earlier arms left can decide it). Arms start in the order of their importance (1 first), then as listed:

  - not before every arm that they NEED has ended well: if one has not, they do not run;
  - not before every arm that they come AFTER has ended, however it did, but no longer than a share of the time is spent;
  - while a more important arm still waits, only into the first half of the jobs: the device is shared, so each would slow down what that
    arm waits for.

With several GPUs an arm runs on the one that has the fewest arms. No arm starts after `start_minutes`; what still runs at `end_minutes` is
stopped. An arm that fails takes no other with it than those that need it. What became of each arm is in RESULTS/<experiment>/arms.json
from the moment it is known; its output in LOGS.
"""

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

WAIT_SHARE = 0.75  # of start_minutes: how long an arm waits for those that it comes after
LOG_TAIL = 600  # characters of a failed arm's output that its record keeps


@dataclasses.dataclass
class Arm:
    experiment: str
    name: str
    steps: list
    needs: list = dataclasses.field(default_factory=list)
    after: list = dataclasses.field(default_factory=list)
    importance: int = 1

    @property
    def key(self):
        return f"{self.experiment}/{self.name}"


class StepFailed(Exception):
    pass


def write_json(path, value):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


class Pool:
    """Runs `arms`; `about` says of each experiment what its records begin with; `on_end(arm)`, if given, is called under the lock when one
    has ended and its record is written; `gpus`: their numbers, to spread arms over."""

    def __init__(self, arms, results, logs, jobs, start_minutes, end_minutes, about, on_end=None, gpus=()):
        keys = [arm.key for arm in arms]
        for arm in arms:
            for other in [*arm.needs, *arm.after]:
                if other not in keys:
                    raise ValueError(f"{arm.key} waits for {other}, which is not among the arms")
        if len(set(keys)) != len(keys):
            raise ValueError(f"arms of the same name among {', '.join(keys)}")
        self.arms = sorted(arms, key=lambda arm: arm.importance)
        self.results, self.logs, self.jobs, self.about, self.on_end = Path(results), Path(logs), jobs, about, on_end
        self.start_seconds, self.end_seconds = 60 * start_minutes, 60 * end_minutes
        self.records = {arm.key: {"experiment": arm.experiment, "arm": arm.name, "status": "waiting"} for arm in self.arms}
        self.gpus = list(gpus)
        self.processes = {}  # of running arms
        self.changed = threading.Condition()
        self.stopping = False

    def run(self):
        """True if every arm has ended well."""
        self.began = time.monotonic()
        self.logs.mkdir(parents=True, exist_ok=True)
        with self.changed:
            while self._step():
                self.changed.wait(timeout=0.2)
            for arm in self.arms:
                if self._waits(arm):
                    self._end(arm, "not started", reason=self._why_not_started(arm))
        return all(record["status"] == "done" for record in self.records.values())

    def stop(self):
        """Ends what runs, starts nothing more: for a signal."""
        self.stopping = True

    def elapsed(self):
        return time.monotonic() - self.began

    # --- All below is called with the lock held, but _run.

    def _step(self):
        """Starts and ends what is due; False when there is nothing left to do."""
        running = [key for key, record in self.records.items() if record["status"] == "running"]
        if self.stopping or self.elapsed() > self.end_seconds:
            self.stopping = True
            for process in self.processes.values():
                kill(process)
            return bool(running)
        for arm in self.arms:
            if self._waits(arm) and any(self._status(n) in ("failed", "stopped", "not started") for n in arm.needs):
                self._end(arm, "not started", reason=self._why_not_started(arm))
        if self.elapsed() <= self.start_seconds:
            self._start_ready(running)
        return bool(running) or any(map(self._waits, self.arms)) and self.elapsed() <= self.start_seconds

    def _start_ready(self, running):
        room = self.jobs
        for i, arm in enumerate(self.arms):
            if i > 0 and arm.importance > self.arms[i - 1].importance and any(map(self._waits, self.arms[:i])):
                room = max(1, self.jobs // 2)
            if len(running) < room and self._is_ready(arm):
                self._start(arm)
                running.append(arm.key)

    def _status(self, key):
        return self.records[key]["status"]

    def _waits(self, arm):
        return self._status(arm.key) == "waiting"

    def _is_ready(self, arm):
        if not self._waits(arm) or any(self._status(other) != "done" for other in arm.needs):
            return False
        patient = self.elapsed() < WAIT_SHARE * self.start_seconds
        return not (patient and any(self._status(other) in ("waiting", "running") for other in arm.after))

    def _why_not_started(self, arm):
        for other in arm.needs:
            if self._status(other) != "done":
                return f"needs {other}: {self._status(other)}"
        late = self.elapsed() > self.start_seconds
        return f"{self.start_seconds / 60:g} minutes were over" if late else "the run was stopped"

    def _start(self, arm):
        self.records[arm.key].update(status="running", started=round(self.elapsed(), 1), commands=[])
        if self.gpus:
            busy = [record.get("gpu") for record in self.records.values() if record["status"] == "running"]
            self.records[arm.key]["gpu"] = min(self.gpus, key=busy.count)
        print(f"[{self.elapsed():6.1f} s] {arm.key}: starts", flush=True)
        threading.Thread(target=self._run, args=(arm,), daemon=True).start()

    def _end(self, arm, status, **more):
        record = self.records[arm.key]
        record.update(status=status, **more)
        if "started" in record:
            record["seconds"] = round(self.elapsed() - record["started"], 1)
        mine = [self.records[other.key] for other in self.arms if other.experiment == arm.experiment]
        path = self.results / arm.experiment / "arms.json"
        write_json(path, {**self.about[arm.experiment], "arms": mine + earlier_records(path, mine)})
        print(f"[{self.elapsed():6.1f} s] {arm.key}: {status}{' (' + more['reason'] + ')' if 'reason' in more else ''}", flush=True)
        if self.on_end:
            self.on_end(arm)

    def _run(self, arm):
        log = self.logs / f"{arm.experiment}-{arm.name}.log"
        status, more = "done", {}
        try:
            with open(log, "w") as output:
                for step in arm.steps:
                    command = step() if callable(step) else step
                    if command is not None:
                        self._run_command(arm, [str(word) for word in command], output)
        except Exception as error:  # whatever it is, the other arms go on
            status, more = ("stopped" if self.stopping else "failed"), {"reason": f"{type(error).__name__}: {error}"}
            more["log"] = log.read_text(errors="replace")[-LOG_TAIL:] if log.exists() else ""
        with self.changed:
            self._end(arm, status, **more)
            self.changed.notify()

    def _run_command(self, arm, command, output):
        began = time.monotonic()
        with self.changed:
            if self.stopping:
                raise StepFailed("the time was over")
            # A group of its own, so that all of it ends when it is stopped.
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=self._environment(arm)
            )
            self.processes[arm.key] = process
        code = process.wait()
        with self.changed:
            del self.processes[arm.key]
            seconds = round(time.monotonic() - began, 1)
            self.records[arm.key]["commands"].append({"command": command, "seconds": seconds, "exit": code})
        if code != 0:
            raise StepFailed(f"{' '.join(command[:2])} ended with {code}")

    def _environment(self, arm):
        gpu = self.records[arm.key].get("gpu")
        return None if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}


def earlier_records(path, records):
    """Those of arms that an earlier run left there and this one does not have."""
    names = [record["arm"] for record in records]
    return [record for record in json.loads(path.read_text())["arms"] if record["arm"] not in names] if path.exists() else []


def kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
