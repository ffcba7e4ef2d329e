"""The pool of arms: order, needs, waiting, limits of time, and that one failure costs no other arm."""

import json
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

from pool import Arm, Pool  # noqa: E402
from run import chosen  # noqa: E402


class PoolTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)

    def run_pool(self, arms, jobs=1, start_minutes=1, end_minutes=2, gpus=()):
        about = {"e": {"scale": 1}}
        self.pool = Pool(arms, self.root / "results", self.root / "logs", jobs, start_minutes, end_minutes, about, gpus=gpus)
        well = self.pool.run()
        self.report = json.loads((self.root / "results/e/arms.json").read_text())
        return well, {record["arm"]: record for record in self.report["arms"]}

    def say(self, word):
        return ["sh", "-c", f"echo {word} >> {self.root}/said"]

    def said(self):
        return (self.root / "said").read_text().split()

    def test_important_arms_start_first_then_as_listed(self):
        arms = [Arm("e", name, [self.say(name)], importance=rank) for name, rank in (("c", 2), ("a", 1), ("d", 2), ("b", 1))]
        well, records = self.run_pool(arms)
        self.assertTrue(well)
        self.assertEqual(self.said(), ["a", "b", "c", "d"])
        self.assertEqual(self.report["scale"], 1)
        self.assertEqual(records["a"]["commands"][0]["exit"], 0)

    def test_a_failure_costs_only_what_needs_it(self):
        arms = [
            Arm("e", "bad", [["sh", "-c", "echo what was wrong; exit 3"]]),
            Arm("e", "raises", [lambda: 1 / 0]),
            Arm("e", "needs", [self.say("needs")], needs=["e/bad"]),
            Arm("e", "needs-that", [self.say("needs-that")], needs=["e/needs"]),
            Arm("e", "after", [self.say("after")], after=["e/bad", "e/needs"]),
            Arm("e", "other", [self.say("other")]),
        ]
        well, records = self.run_pool(arms, jobs=2)
        self.assertFalse(well)
        self.assertEqual(sorted(self.said()), ["after", "other"])
        statuses = {name: record["status"] for name, record in records.items()}
        self.assertEqual(statuses, {"bad": "failed", "raises": "failed", "needs": "not started", "needs-that": "not started",
                                    "after": "done", "other": "done"})  # fmt: skip
        self.assertIn("ended with 3", records["bad"]["reason"])
        self.assertIn("what was wrong", records["bad"]["log"])
        self.assertIn("ZeroDivisionError", records["raises"]["reason"])
        self.assertEqual(records["needs"]["reason"], "needs e/bad: failed")

    def test_steps_are_decided_when_their_turn_comes(self):
        made = self.root / "made"
        arms = [
            Arm("e", "second", [lambda: self.say(made.read_text())], needs=["e/first"]),
            Arm("e", "first", [lambda: made.write_text("decided") and None, self.say("first")]),
        ]
        well, _ = self.run_pool(arms, jobs=2)
        self.assertTrue(well)
        self.assertEqual(self.said(), ["first", "decided"])

    def test_no_more_arms_at_once_than_jobs(self):
        count = f"echo + >> {self.root}/said; sleep 0.3; echo - >> {self.root}/said"
        self.run_pool([Arm("e", str(i), [["sh", "-c", count]]) for i in range(6)], jobs=3)
        level, highest = 0, 0
        for mark in self.said():
            level += 1 if mark == "+" else -1
            highest = max(highest, level)
        self.assertEqual(highest, 3)

    def test_arms_are_spread_over_gpus(self):
        told = f"echo $CUDA_VISIBLE_DEVICES >> {self.root}/said; sleep 0.5"
        _, records = self.run_pool([Arm("e", str(i), [["sh", "-c", told]]) for i in range(6)], jobs=6, gpus=[0, 2, 3])
        self.assertEqual(sorted(self.said()), ["0", "0", "2", "2", "3", "3"])
        self.assertEqual([records[str(i)]["gpu"] for i in range(6)], [0, 2, 3, 0, 2, 3])

    def test_less_important_arms_leave_half_of_the_jobs_to_what_waits(self):
        slow = "sleep 0.3"
        arms = [
            Arm("e", "first", [["sleep", "1.5"]]),
            Arm("e", "waits", [self.say("waits")], needs=["e/first"]),
            *(Arm("e", f"less-{i}", [["sh", "-c", slow]], importance=2) for i in range(8)),
        ]
        well, records = self.run_pool(arms, jobs=4)
        self.assertTrue(well)
        # Until `first` ends, one of them at a time runs beside it: two jobs of four.
        end = records["first"]["started"] + records["first"]["seconds"]
        starts = sorted(record["started"] for name, record in records.items() if name.startswith("less") and record["started"] < end - 0.2)
        self.assertGreaterEqual(len(starts), 2)
        for one, next_one in zip(starts, starts[1:]):
            self.assertGreaterEqual(next_one - one, 0.2)

    def test_after_the_limit_nothing_starts_and_at_the_end_all_is_stopped(self):
        arms = [
            Arm("e", "long", [["sh", "-c", "sleep 60 & sleep 60"], self.say("long")]),
            Arm("e", "late", [self.say("late")], after=["e/long"]),
            Arm("e", "later", [self.say("later")], importance=2),
        ]
        began = time.monotonic()
        well, records = self.run_pool(arms, start_minutes=0.5 / 60, end_minutes=1.5 / 60)
        self.assertLess(time.monotonic() - began, 20)
        self.assertFalse(well)
        self.assertFalse((self.root / "said").exists())
        self.assertEqual(records["long"]["status"], "stopped")
        self.assertEqual(records["later"]["status"], "not started")
        self.assertIn("minutes were over", records["later"]["reason"])

    def test_what_comes_after_waits_only_for_a_share_of_the_time(self):
        arms = [
            Arm("e", "long", [["sleep", "4"]]),
            Arm("e", "patient", [self.say("patient")], after=["e/long"]),
        ]
        well, records = self.run_pool(arms, jobs=2, start_minutes=2 / 60, end_minutes=1)
        self.assertTrue(well)
        self.assertGreaterEqual(records["patient"]["started"], 1.4)
        self.assertLess(records["patient"]["started"], 3.5)

    def test_a_run_of_some_arms_keeps_the_records_of_others(self):
        self.run_pool([Arm("e", "a", [["true"]]), Arm("e", "b", [["false"]])])
        _, records = self.run_pool([Arm("e", "b", [["true"]])])
        self.assertEqual({name: record["status"] for name, record in records.items()}, {"a": "done", "b": "done"})

    def test_only_takes_what_is_needed_along(self):
        arms = [
            Arm("e", "a", []),
            Arm("e", "b", [], needs=["e/a"]),
            Arm("e", "c", [], needs=["e/b"], after=["e/a", "e/d"]),
            Arm("e", "d", []),
        ]
        taken = chosen(arms, ["e/c*"])
        self.assertEqual([arm.name for arm in taken], ["a", "b", "c"])
        self.assertEqual(taken[2].after, ["e/a"])
        arms = [Arm("search", "greedy", []), Arm("search", "descent", [], needs=["search/greedy"])]
        self.assertEqual(len(chosen(arms, ["*descent"], [self.root])), 2)
        (self.root / "search").mkdir()
        (self.root / "search/greedy.json").touch()
        self.assertEqual([(arm.name, arm.needs) for arm in chosen(arms, ["*descent"], [self.root])], [("descent", [])])
        with self.assertRaisesRegex(ValueError, "--only e/x: expected names among e/a"):
            chosen([Arm("e", "a", [])], ["e/x"])

    def test_arms_that_wait_for_none_of_the_others_are_refused(self):
        with self.assertRaisesRegex(ValueError, "e/a waits for e/b"):
            self.run_pool([Arm("e", "a", [], needs=["e/b"])])
        with self.assertRaisesRegex(ValueError, "same name"):
            self.run_pool([Arm("e", "a", []), Arm("e", "a", [])])


if __name__ == "__main__":
    unittest.main()
