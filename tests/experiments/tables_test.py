"""Tables from small results whose figures were worked out by hand."""

import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import tables  # noqa: E402
import tables_of_searches  # noqa: E402
import tables_of_training  # noqa: E402
from lab import read_settings, sample_documents, scaled, sources, uniform  # noqa: E402
from results import Results, agreement, rank_correlation, ratio  # noqa: E402
from run import rounded  # noqa: E402
from topk import allocate  # noqa: E402

WINDOWS = [{"domain": "a", "tokens": 10, "bytes": 30}, {"domain": "b", "tokens": 10, "bytes": 20}]


def evaluation(patterns, windows=WINDOWS):
    """patterns: {pattern: (nll of each window, right of each prompt)}."""
    entries = [
        {"pattern": pattern, "language": {"each": {"nll": nll}},
         "tasks": [{"task": task, "each": {"right": right, "loss": right}} for task in ("multi_needle", "single_needle")]}
        for pattern, (nll, right) in patterns.items()
    ]  # fmt: skip
    return {"windows": windows, "text": {"context": 10}, "seed": 1, "patterns": entries}


def pattern_file(patterns, losses=None):
    """For 4 layers: patterns from most Full layers to least."""
    entries = [
        {"count": sources(p).count(-1), "pattern": p, "sources": sources(p), "difference": 0.1 * (i + 1), "standard_error": 0.01}
        for i, p in enumerate(patterns)
    ]
    start = {"count": 4, "pattern": "FFFF", "sources": [-1] * 4}
    return {"start": start, "evaluations": 6, "layer_runs": 15, "layer_run_share": 0.625, "budgets": entries}


GREEDY = ["FFFS", "FFSS", "FSSS"]
ROUTED = ["FFFS", "-1,-1,0,0", "FSSS"]


class TablesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def put(self, name, content):
        path = self.root / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def put_search(self):
        self.put("search/arms", {"settings": {"budgets": ["1/2", "1/8"]}, "arms": [{"arm": "greedy", "seconds": 12.4}]})
        self.put("search/greedy", pattern_file(GREEDY))
        self.put("search/routed", pattern_file(ROUTED))
        self.put("search/eval-1-2", evaluation({
            "FFFF": ([20, 30], [1, 0.5]), "FSFS": ([24, 34], [0, 0.5]), "FFSS": ([21, 33], [1, 0.5]), "-1,-1,0,0": ([20, 32], [1, 1])
        }))  # fmt: skip

    def rows(self, made):
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in made.splitlines() if line.startswith("|")]

    def test_ratio_is_the_estimator_of_the_documents(self):
        estimate = ratio([1, 3], [1, 1])
        self.assertEqual((estimate.value, estimate.error), (2, 1))  # sqrt(2 / 1 * (1 + 1)) / 2
        estimate = ratio([2, 2], [1, 3])  # R = 1; residuals 1 and -1; sqrt(2 * 2) / 4
        self.assertEqual((estimate.value, estimate.error), (1, 0.5))
        self.assertEqual(ratio([1], [2]).text(1), "+0.5")

    def test_search_shows_differences_from_all_full_and_from_greedy(self):
        self.put_search()
        rows = self.rows(tables_of_searches.search(self.root))
        # Loss 50 / 20 tokens; error sqrt(2 * (5^2 + 5^2)) / 20 = .5. Right: .75, sqrt(2 * 2 * .25^2) / 2.
        # Answers: .75 over four prompts, sqrt(4 / 3 * 4 * .25^2) / 4.
        self.assertEqual(rows[2][:4], ["all Full", "2.5000 +- 0.5000", "0.7500 +- 0.1443", "75.0 +- 25.0"])
        by_name = {row[0]: row for row in rows[3:]}
        # uniform: +4 and +4 nats: no spread. greedy: +1 and +3: .2, sqrt(2 * 2) / 20 = .1.
        # Answers: -1 and 0 twice, sqrt(4 / 3 * 4 * .5^2) / 4.
        self.assertEqual(by_name["uniform"][1:4], ["+0.4000 +- 0.0000", "-0.5000 +- 0.2887", "-50.0 +- 50.0"])
        self.assertEqual(by_name["uniform"][5:], ["+0.2000 +- 0.1000", "`FSFS`"])
        self.assertEqual(by_name["greedy"][1:], ["+0.2000 +- 0.1000", "+0.0000 +- 0.0000", "+0.0 +- 0.0", "+0.0 +- 0.0", "", "`FFSS`"])
        self.assertEqual(by_name["routed"][1], "+0.1000 +- 0.1000")
        self.assertEqual(by_name["routed"][5:], ["-0.1000 +- 0.0000", "`-1,-1,0,0`"])
        self.assertNotIn("lazy", by_name)  # was not searched

    def test_effort_counts_agreement(self):
        self.put_search()
        rows = {row[0]: row for row in self.rows(tables_of_searches.effort(self.root))}
        self.assertEqual(rows["greedy"], ["greedy", "6", "15", "62 %", "12", "3 of 3", "2 of 3"])
        self.assertEqual(agreement(pattern_file(GREEDY), pattern_file(ROUTED[:2])), (1, 2))

    def test_removal_names_the_layer_of_each_step(self):
        self.put_search()
        rows = self.rows(tables_of_searches.removal(self.root))
        self.assertEqual([row[1] for row in rows[2:]], ["3", "2", "1"])
        self.assertEqual(rows[2][:3], ["3", "3", "+0.1000 +- 0.0100"])

    def test_overlap_beside_sources_and_removal(self):
        self.put_search()
        matrix = [[1, 0.2, 0.9, 0.5], [0.2, 1, 0.4, 0.1], [0.9, 0.4, 1, 0.6], [0.5, 0.1, 0.6, 1]]
        self.put("overlap/overlap", {"overlap": matrix, "layers": [0, 1, 2, 3]})
        made = tables_of_searches.overlap(self.root)
        self.assertIn("| 1 | 0.400 | 0.200 | 0.600 |", made)  # .2, .4, .6
        self.assertIn("| 2 | 0.500 | 0.100 | 0.900 |", made)
        self.assertIn("| greedy 1/2 | 0.250 | 0 of 2 |", made)  # 2 and 3 read 1: .4, .1; 0 overlaps more with both
        self.assertIn("| routed 1/2 | 0.700 | 2 of 2 |", made)  # both read 0: .9, .5
        self.assertIn("removes it: +1.00.", made)  # 3, 2, 1 are removed in turn: .6, .4, .2

    def test_rank_correlation(self):
        self.assertAlmostEqual(rank_correlation([1, 2, 3], [5, 9, 7]), 0.5)
        self.assertAlmostEqual(rank_correlation([1, 1, 2], [3, 3, 1]), -1)
        self.assertIsNone(rank_correlation([1, 1], [1, 2]))

    def test_transfer_judges_by_domain(self):
        self.put("transfer/arms", {"settings": {"budgets": ["1/2"], "domains": {"alpha": ["a"], "none": ["c"]}}})
        self.put("transfer/mixed", pattern_file(GREEDY))
        self.put("transfer/eval-1-2", evaluation({"FFFF": ([20, 30], [1, 1]), "FFSS": ([21, 33], [1, 0])}))
        rows = self.rows(tables_of_searches.transfer(self.root))
        self.assertEqual(rows[3], ["mixed", "+0.2000 +- 0.1000", "+0.1000", "", "-50.0 +- 50.0", "`FFSS`"])

    def test_calibration_shows_each_draw(self):
        self.put("calibration/arms", {"settings": {"budgets": ["1/2"], "sizes": [2, 4], "largest": 4, "seeds": [1, 2]}})
        self.put("calibration/largest", pattern_file(GREEDY))
        self.put("calibration/2-1", pattern_file(["FFFS", "FSFS"]))
        self.put("calibration/2-2", pattern_file(GREEDY))
        self.put("calibration/eval-1-2", evaluation({"FFFF": ([20, 30], []), "FFSS": ([21, 33], []), "FSFS": ([22, 32], [])}))
        rows = self.rows(tables_of_searches.calibration(self.root))
        self.assertEqual(rows[2], ["2", "1 of 2, 3 of 3", "+0.2000 +- 0.0000, +0.2000 +- 0.1000"])
        self.assertEqual(rows[3][:2], ["4", ""])

    def test_distilled_models_are_compared_input_by_input(self):
        self.put("distill/full", evaluation({"FFFF": ([18, 28], [1, 1])}))
        self.put("distill/uniform-1-2-own", evaluation({"FSFS": ([19, 31], [1, 0])}))
        self.put("distill/untrained", evaluation({"FFFF": ([20, 30], [1, 1]), "FSFS": ([24, 34], [1, 1])}))
        stages = [{"stage": "indexer", "tokens": 8e5, "seconds": 10}, {"stage": "sparse", "tokens": 12e5, "seconds": 20.4}]
        self.put("distill/uniform-1-2-own-curves", {"stages": stages})
        rows = {row[0]: row for row in self.rows(tables_of_training.distill(self.root))}
        own = ["uniform-1-2", "own", "+0.4000 +- 0.0000", "+0.2000 +- 0.1000", "-0.5000 +- 0.2887"]
        own += ["-50.0 +- 50.0", "-50.0 +- 50.0", "2.00", "30"]
        self.assertEqual(rows["uniform-1-2"], own)
        self.assertEqual(rows["all Full"][2:4], ["2.5000 +- 0.5000", "2.3000 +- 0.5000"])
        self.put("distill/full", evaluation({"FFFF": ([18, 28], [1, 1])}, windows=WINDOWS[::-1]))
        with self.assertRaisesRegex(ValueError, "uniform-1-2-own.json: FSFS and distill/full.json: FFFF: expected the same inputs"):
            tables_of_training.distill(self.root)

    def test_seeds_and_times_pair_with_their_own(self):
        for suffix, lost in (("", 1), ("-seed-2", 2)):
            self.put(f"distill/full{suffix}", evaluation({"FFFF": ([18, 28], [1, 1])}))
            self.put(f"distill/uniform-1-4-multi{suffix}", evaluation({"FSSS": ([18 + lost, 28 + lost], [1, 1])}))
        rows = self.rows(tables_of_training.seeds(self.root))
        self.assertEqual([row[1:3] for row in rows[2:]], [["1", "+0.1000 +- 0.0000"], ["2", "+0.2000 +- 0.0000"]])
        self.put("distill/uniform-1-4-own-timed", evaluation({"FSSS": ([22, 32], [1, 1])}))
        self.put("distill/uniform-1-4-multi-timed", evaluation({"FSSS": ([19, 29], [1, 1])}))
        self.assertEqual(self.rows(tables_of_training.timed(self.root))[2][:4], ["time", "", "", "+0.3000 +- 0.0000"])

    def test_alternating_is_judged_against_two_rounds(self):
        self.put("alternate/full-twice", evaluation({"FFFF": ([18, 28], [1, 1])}))
        self.put("alternate/new-pattern", evaluation({"FSFS": ([19, 29], [1, 1])}))
        rows = self.rows(tables_of_training.alternate(self.root))
        self.assertEqual(rows[3][:2] + rows[3][-1:], ["new pattern", "+0.1000 +- 0.0000", "`FSFS`"])

    def test_topk_is_judged_against_the_models_own(self):
        self.put("topk/arms", {"index_topk": 16, "settings": {"patterns": ["greedy"]}})
        self.put("topk/model", evaluation({"FFFF": ([20, 30], [1, 1]), "FSSF": ([24, 34], [1, 1])}))
        self.put("topk/greedy-sets", evaluation({"FFFF": ([1, 1], [1, 1]), "FSSF": ([22, 32], [1, 1])}))
        rows = self.rows(tables_of_searches.topk(self.root))
        self.assertEqual(rows[3][:4], ["", "sets", "0: 24, 3: 8", "-0.2000 +- 0.0000"])

    def test_a_document_gets_its_tables(self):
        document = self.root / "doc.md"
        text = "before\n<!-- table effort of {} -->\nold\n<!-- end of table -->\nafter\n"
        document.write_text(text.format(self.root) + text.format("nowhere"))
        self.put_search()
        self.assertEqual(tables.main(["--check", str(document)]), 1)
        self.assertEqual(tables.main([str(document)]), 0)
        self.assertEqual(tables.main(["--check", str(document)]), 0)
        made = document.read_text()
        self.assertIn("| greedy | 6 | 15 |", made)
        self.assertEqual(made.count("before\n"), 2)
        self.assertIn("nowhere -->\nNot run yet.\n<!-- end of table -->\nafter\n", made)
        document.write_text(text.format("nowhere").replace("effort", "none"))
        with self.assertRaisesRegex(ValueError, "table none: expected one of"):
            tables.main([str(document)])


class SettingsTest(unittest.TestCase):
    def test_patterns_as_printed(self):
        self.assertEqual(sources("FSSF"), [-1, 0, 0, -1])
        self.assertEqual(sources("-1,-1,0,1"), [-1, -1, 0, 1])
        self.assertEqual(uniform("1/4", 6), "FSSSFS")

    def test_k_by_readers_keeps_its_total(self):
        layers = sources("FSSSSSFS")  # 0 is read by 6, 6 by 2
        sets = allocate(layers, 16, "sets", 1.0)
        self.assertEqual((sets[0], sets[6], sets[1]), (24, 8, 16))
        for exponent in (0.5, -0.5):
            k = allocate(layers, 256, "reads", exponent)
            self.assertLess(abs(6 * k[0] + 2 * k[6] - 8 * 256), 8)
            self.assertEqual(k[0] > k[6], exponent > 0)

    def test_settings_are_scaled_and_overridden(self):
        settings = read_settings("transfer", 0.25, ["context=512", "search.prompts=9", "transfer.windows=first"])
        self.assertEqual((settings["sequences"], settings["context"], settings["windows"]), (2, 512, "first"))
        self.assertEqual(settings["prompts"], 6)
        self.assertEqual(scaled([2, 4, 8], 0.25), [2])
        self.assertEqual(scaled(1.5, 0.5), 0.75)

    def test_a_sample_has_whole_documents(self):
        documents = [{"text": "x" * size} for size in (400_000, 500_000, 300_000)]
        chosen = sample_documents(documents, 0.6)
        self.assertTrue(all(document in documents for document in chosen))
        self.assertEqual(chosen, sample_documents(documents, 0.6))
        self.assertLess(sum(len(d["text"]) for d in chosen[:-1]), 600_000)

    def test_results_are_rounded_to_seven_digits(self):
        self.assertEqual(rounded({"a": [1 / 3, 2, None, "x"]}), {"a": [0.3333333, 2, None, "x"]})

    def test_results_that_are_not_there(self):
        self.assertEqual(Results("nowhere").scores("search/eval-1-2"), {})
        for made in {**tables_of_searches.TABLES, **tables_of_training.TABLES}.values():
            self.assertIsNone(made(Path("nowhere")))


if __name__ == "__main__":
    unittest.main()
