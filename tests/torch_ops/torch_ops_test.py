#!/usr/bin/env python3
"""The PyTorch custom ops against plain torch algebra, through opcheck and under torch.compile.

usage: torch_ops_test.py LIBRARY [cpu | cuda]
"""

import math
import sys
import unittest
import warnings

warnings.filterwarnings("ignore", message=".*NumPy.*")
import torch

DEVICE = "cpu"
TYPE = "half_split+hadamard+ue8m0"
SCALE = 1 / 24
PAGE_BYTES = 64 * 132


def ops():
    return torch.ops.indexcache


def integers(*shape, bound=3):
    return torch.randint(-bound, bound + 1, shape, device=DEVICE).float()


def ints(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


# --- The definitions, in double.


def top_sets(scores, start, end, k):
    """Higher score first, then lower index; ascending, minus start, -1 padded."""
    rows = []
    for row, first, last in zip(scores.tolist(), start.tolist(), end.tolist()):
        best = sorted(range(first, max(first, last)), key=lambda s: (-row[s], s))[:k]
        rows.append([s - first for s in sorted(best)] + [-1] * (k - len(best)))
    return ints(rows)


def index_scores(q, keys, weights):
    relu = torch.einsum("thd,sd->ths", q.double(), keys.double()).relu()
    return torch.einsum("th,ths->ts", weights.double(), relu)


def hadamard(size):
    matrix = torch.ones(1, 1, dtype=torch.double, device=DEVICE)
    while matrix.size(0) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def rotated(x, cos_sin, positions, kind):
    """RoPE on the first 64 of 128 coordinates, then the Hadamard rotation."""
    cos, sin = cos_sin.double()[positions].view(-1, *[1] * (x.dim() - 2), 2, 32).unbind(-2)
    x = x.double().clone()
    pairs = x[..., :64].unflatten(-1, (2, 32) if "half_split" in kind else (32, 2))
    a, b = pairs.unbind(-2 if "half_split" in kind else -1)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -2 if "half_split" in kind else -1)
    x[..., :64] = turned.flatten(-2)
    return x @ hadamard(128) if "hadamard" in kind else x


def attention(q, kv, indices, value_dim):
    """Rows of kv by index; below 0 skipped."""
    skipped = indices < 0
    rows = kv.double()[indices.clamp_min(0).long()].masked_fill(skipped.unsqueeze(-1), 0)
    logits = SCALE * torch.einsum("thd,tkd->thk", q.double(), rows)
    logits = logits.masked_fill(skipped.unsqueeze(1), -math.inf)
    lse = logits.logsumexp(-1)
    weights = torch.where(lse.isinf().unsqueeze(-1), 0, (logits - lse.unsqueeze(-1)).exp())
    return torch.einsum("thk,tkd->thd", weights, rows[..., :value_dim]), lse


# --- Inputs.


def angles(count=200):
    angle = torch.arange(count).double()[:, None] * 1e4 ** (-torch.arange(32).double() / 32)
    return torch.cat([angle.cos(), angle.sin()], 1).float().to(DEVICE)


def positions(count):
    return torch.randint(0, 200, (count,), device=DEVICE)


class Inputs:
    """Arguments of each op that opcheck and the tests share."""

    def __init__(self):
        torch.manual_seed(1)
        bf16 = torch.bfloat16
        self.cos_sin = angles()
        q, weights = torch.randn(6, 4, 128, device=DEVICE), torch.randn(6, 4, device=DEVICE)
        self.index_q = (q.to(bf16), weights, self.cos_sin, positions(6), TYPE)
        slots = torch.randperm(5 * 64, device=DEVICE)[:150]
        self.pages = torch.zeros(5, PAGE_BYTES, dtype=torch.uint8, device=DEVICE)
        self.index_k_append = (
            torch.randn(150, 128, device=DEVICE), self.cos_sin, positions(150), slots, self.pages, TYPE)
        self.index_topk = (
            integers(5, 4, 128).to(bf16), integers(90, 128).to(bf16), integers(5, 4),
            ints([0, 0, 3, 40, 90]), ints([90, 50, 3, 90, 7]), 8)
        fp8 = torch.float8_e4m3fn
        self.index_topk_fp8 = (
            integers(5, 4, 128).to(fp8), integers(5, 4), TYPE, integers(90, 128).to(fp8),
            torch.exp2(integers(90)), TYPE, *self.index_topk[3:])
        self.block_table = ints([[4, 0], [1, 3], [2, -1]])
        self.index_union = (ints([[0, 4, 9], [1, 5, 8], [2, 3, 7]]), ints([0, 3]))
        self.q = torch.randn(6, 3, 576, device=DEVICE).to(bf16)
        self.latents = torch.randn(40, 512, device=DEVICE).to(bf16)
        self.rope_keys = torch.randn(40, 64, device=DEVICE).to(bf16)
        self.indices = torch.randint(-1, 40, (6, 16), device=DEVICE, dtype=torch.int32)
        self.indices[1] = -1
        self.kv = torch.cat([self.latents, self.rope_keys], 1)
        self.slots = torch.randperm(48, device=DEVICE)[:40]
        self.latent_pages = torch.zeros(6, 8, 576, dtype=bf16, device=DEVICE)
        self.latent_append = (self.latents, self.rope_keys, self.slots, self.latent_pages)

    def paged_queries(self):
        q, weights = ops().index_q(*self.index_q)
        ops().index_k_append(*self.index_k_append)
        end = ints([60, 61, 100, 101, 64, 0])
        return (q, weights, TYPE, self.pages, TYPE, self.block_table, torch.zeros_like(end), end, 8, 2)

    def slot_indices(self):
        """The indices as slots of the appended latents."""
        slots = self.slots[self.indices.clamp_min(0).long()].int()
        return slots.masked_fill(self.indices < 0, -1)


class Ops(unittest.TestCase):
    def setUp(self):
        self.inputs = Inputs()

    def assert_close(self, found, expected, tolerance):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)

    def test_index_topk_selects_the_best(self):
        q, keys, weights, start, end, k = self.inputs.index_topk
        expected = top_sets(index_scores(q, keys, weights), start, end, k)
        self.assertTrue(ops().index_topk(q, keys, weights, start, end, k).equal(expected))

    def test_index_topk_fp8_selects_the_best(self):
        q, weights, _, keys, scale, _, start, end, k = self.inputs.index_topk_fp8
        scores = index_scores(q.float(), keys.float(), weights) * scale.double()
        expected = top_sets(scores, start, end, k)
        self.assertTrue(ops().index_topk_fp8(*self.inputs.index_topk_fp8).equal(expected))

    def test_seeds_change_nothing(self):
        arguments = self.inputs.index_topk_fp8
        expected = ops().index_topk_fp8(*arguments)
        torch.library.opcheck(ops().index_topk_fp8.default, arguments, {"seeds": expected},
                              test_utils=("test_autograd_registration", "test_faketensor"))
        for seeds in (expected, expected.flip(0), expected.new_full((5, 3), -7)):
            self.assertTrue(ops().index_topk_fp8(*arguments, seeds).equal(expected))
            self.assertTrue(ops().index_topk_fp8(*arguments, seeds=seeds).equal(expected))

    def test_index_topk_paged_equals_contiguous_keys(self):
        arguments = self.inputs.paged_queries()
        q, weights, _, pages, _, table, start, end, k, tokens = arguments
        found = ops().index_topk_paged(*arguments)
        for request in range(3):
            own = pages[table[request].clamp_min(0).long()]
            keys = own[:, : 64 * 128].reshape(-1, 128).view(torch.float8_e4m3fn)
            scale = own[:, 64 * 128 :].contiguous().view(torch.float32).flatten()
            rows = slice(request * tokens, (request + 1) * tokens)
            expected = ops().index_topk_fp8(
                q[rows], weights[rows], TYPE, keys, scale, TYPE, start[rows], end[rows], k)
            self.assertTrue(found[rows].equal(expected))

    def test_index_q_and_index_k_append_quantise_rotated_rows(self):
        def check(values, scale, expected):
            found = values.double() * scale.unsqueeze(-1)
            half_step = expected.abs() / 16 + scale.unsqueeze(-1) / 1024
            error = 1e-5 * expected.abs().amax(-1, keepdim=True)
            self.assertTrue(((found - expected).abs() <= half_step + error).all())
            amax = expected.abs().amax(-1)
            self.assertTrue((amax <= 448 * 1.00001 * scale).all())
            self.assertTrue((scale <= amax / 448 * (2.00001 if "ue8m0" in kind else 1.00001)).all())

        for kind in ("interleaved", "half_split", "interleaved+hadamard", TYPE):
            q, weights, cos_sin, where, _ = self.inputs.index_q
            found, folded = ops().index_q(q, weights, cos_sin, where, kind)
            scale = folded.double() / (weights.double() / math.sqrt(4 * 128))
            check(found, scale, rotated(q, cos_sin, where, kind))

            keys, cos_sin, where, slots, pages, _ = self.inputs.index_k_append
            ops().index_k_append(keys, cos_sin, where, slots, pages, kind)
            rows = pages[:, : 64 * 128].reshape(-1, 128).view(torch.float8_e4m3fn)
            scales = pages[:, 64 * 128 :].contiguous().view(torch.float32).flatten().double()
            untouched = torch.ones(5 * 64, dtype=torch.bool, device=DEVICE)
            untouched[slots] = False
            self.assertEqual(scales[untouched].count_nonzero(), 0)
            # Indexing has no float8: as bytes.
            own = rows.view(torch.uint8)[slots].view(torch.float8_e4m3fn)
            check(own, scales[slots], rotated(keys, cos_sin, where, kind))

    def test_index_union_is_the_union(self):
        entries, counts = ops().index_union(*self.inputs.index_union)
        self.assertEqual(counts.tolist(), [9])
        masks = {0: 1, 1: 2, 2: 4, 3: 4, 4: 1, 5: 2, 7: 4, 8: 2, 9: 1}
        self.assertEqual([e & 0xFFFFFFFF for e in entries[0].tolist()], [i | m << 29 for i, m in masks.items()])

    def test_sparse_mla_attends_to_its_rows(self):
        i = self.inputs
        for found in (
            ops().sparse_mla(i.q, i.kv, i.indices, 512, SCALE),
            ops().sparse_mla_paged(i.q, i.kv.unsqueeze(0), None, None, i.indices, SCALE),
        ):
            out, lse = attention(i.q, i.kv, i.indices, 512)
            self.assert_close(found[0], out, 2e-2)
            self.assert_close(found[1], lse, 1e-3)

    def test_sparse_mla_reads_what_latent_append_wrote(self):
        i = self.inputs
        ops().latent_append(*i.latent_append)
        out, lse = attention(i.q, i.kv, i.indices, 512)
        for split in ("whole", "cluster"):
            found = ops().sparse_mla_paged(i.q, i.latent_pages, None, None, i.slot_indices(), SCALE, split)
            self.assert_close(found[0], out, 2e-2)
            self.assert_close(found[1], lse, 1e-3)
        fp8 = torch.zeros(6, 8, 656, dtype=torch.uint8, device=DEVICE)
        ops().latent_append(i.latents, i.rope_keys, i.slots, fp8)
        found = ops().sparse_mla_paged(i.q, fp8, None, None, i.slot_indices(), SCALE)
        self.assert_close(found[0], out, 0.3)  # e4m3 rows: half a step of 2^-3 in logits and values
        self.assert_close(found[1], lse, 0.3)

    def test_sparse_mla_union_equals_its_sets(self):
        i = self.inputs
        ops().latent_append(*i.latent_append)
        sets = torch.stack([torch.randperm(48, device=DEVICE)[:10].sort()[0].int() for _ in range(6)])
        begin = ints([0, 1, 4, 6])
        entries, counts = ops().index_union(sets, begin)
        found = ops().sparse_mla_union(i.q, i.latent_pages, None, begin, None, entries, counts, SCALE)
        expected = ops().sparse_mla_paged(i.q, i.latent_pages, None, None, sets, SCALE)
        self.assert_close(found[0], expected[0].double(), 2e-2)
        self.assert_close(found[1], expected[1].double(), 1e-3)

    def test_mistakes_are_value_errors(self):
        arguments = list(self.inputs.paged_queries())
        arguments[4] = "interleaved"
        with self.assertRaisesRegex(ValueError, "type of the queries: expected the cache's, interleaved"):
            ops().index_topk_paged(*arguments)
        with self.assertRaisesRegex(ValueError, 'index key type: expected .*, found "neox"'):
            ops().index_q(*self.inputs.index_q[:4], "neox")
        with self.assertRaisesRegex(ValueError, "sparse_mla: q: expected contiguous bf16"):
            ops().sparse_mla_paged(self.inputs.q.float(), self.inputs.latent_pages, None, None,
                                   self.inputs.indices, SCALE)
        with self.assertRaisesRegex(ValueError, 'scale: expected fp32, bf16 or ue8m0, found "fp8"'):
            ops().latent_append(*self.inputs.latent_append, "fp8")


class Contract(unittest.TestCase):
    """What torch itself asks of a custom op: a true schema, fakes of the right shapes, functionalisation."""

    def assert_leaves_its_arguments(self, operator, arguments):
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        before = [a.view(torch.uint8).clone() for a in tensors]
        out = operator(*arguments)
        self.assertTrue(all(a.view(torch.uint8).equal(b) for a, b in zip(tensors, before)))
        self.assertNotIn(out.untyped_storage().data_ptr(), [a.untyped_storage().data_ptr() for a in tensors])

    def test_opcheck(self):
        i = Inputs()
        i.paged = i.paged_queries()
        i.index_topk_paged = i.paged
        i.sparse_mla = (i.q, i.kv, i.indices, 512, SCALE)
        i.sparse_mla_paged = (i.q, i.latent_pages, None, None, i.slot_indices(), SCALE)
        entries, counts = ops().index_union(i.indices[:3].sort()[0].clamp_min(0), ints([0, 3]))
        i.sparse_mla_union = (i.q[:3], i.latent_pages, None, ints([0, 3]), None, entries, counts, SCALE)
        names = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names()
                 if name.startswith("indexcache::")]
        self.assertEqual(len(names), 10)
        for name in names:
            with self.subTest(name):
                operator, arguments = getattr(ops(), name).default, getattr(i, name)
                tests = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
                if any(isinstance(a, torch.Tensor) and a.dtype == torch.float8_e4m3fn for a in arguments):
                    tests.remove("test_schema")  # it compares arguments, which torch cannot do in float8
                    self.assert_leaves_its_arguments(operator, arguments)
                torch.library.opcheck(operator, arguments, test_utils=tests)

    def test_one_graph_under_compile(self):
        i = Inputs()

        def step(q, weights, keys, where, key_where, slots, pages, latents, rope_keys, latent_slots,
                 latent_pages, mla_q, end):
            ops().index_k_append(keys, i.cos_sin, key_where, slots, pages, TYPE)
            ops().latent_append(latents, rope_keys, latent_slots, latent_pages)
            queries, folded = ops().index_q(q, weights, i.cos_sin, where, TYPE)
            sets = ops().index_topk_paged(queries, folded, TYPE, pages, TYPE, i.block_table,
                                          torch.zeros_like(end), end, 8, 2)
            out, _ = ops().sparse_mla_paged(mla_q, latent_pages, None, None, sets, SCALE)
            return out + 1

        def arguments():
            return (*i.index_q[:2], i.index_k_append[0], i.index_q[3], i.index_k_append[2],
                    i.index_k_append[3], i.pages.clone(), i.latents, i.rope_keys, i.slots,
                    i.latent_pages.clone(), i.q, ints([40, 41, 42, 43, 44, 0]))

        eager, compiled = arguments(), arguments()
        expected = step(*eager)
        found = torch.compile(step, backend="aot_eager", fullgraph=True)(*compiled)
        self.assertTrue(found.equal(expected))
        for a, b in zip(eager, compiled):  # the caches too
            self.assertTrue(a.equal(b))

    @unittest.skipUnless(torch.cuda.is_available(), "CUDA graphs")
    def test_a_graph_replays_on_new_contents(self):
        if DEVICE != "cuda":
            return
        i = Inputs()
        arguments = i.paged_queries()
        end = arguments[7]

        def step():
            ops().index_k_append(*i.index_k_append)
            queries, folded = ops().index_q(*i.index_q)
            sets = ops().index_topk_paged(queries, folded, *arguments[2:])
            return ops().sparse_mla_paged(i.q, i.latent_pages, None, None, sets, SCALE, "cluster")

        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, lse = step()
        i.index_q[0].normal_()
        i.index_k_append[0].normal_()
        i.latent_pages.normal_()
        end.copy_(ints([30, 31, 90, 91, 10, 11]))
        graph.replay()
        expected = step()
        self.assertTrue(out.equal(expected[0]) and lse.equal(expected[1]))


if __name__ == "__main__":
    torch.ops.load_library(sys.argv[1])
    if len(sys.argv) > 2:
        DEVICE = sys.argv[2]
    unittest.main(argv=sys.argv[:1], verbosity=2)
