// e4m3 latents expanded to bf16 on a GPU: their values, and sparse_mla over them, which must give the
// bits that it gives over e4m3.
#include <cstdio>

#include "support/device_check.h"
#include "support/latent_batch.h"

namespace indexcache::testing {
namespace {

LatentProblem make(std::int64_t queries, std::int64_t keys, int page_shift, EntryKind kind,
                   unsigned seed) {
  LatentProblem p;
  p.queries = queries, p.heads = 20, p.keys = keys, p.top_k = 90, p.page_shift = page_shift;
  p.format = LatentFormat::kE4M3;
  p.kind = kind;
  p.name = std::to_string(keys) + " keys, pages of 2^" + std::to_string(page_shift) +
           (kind == EntryKind::kUnion ? ", union" : ", indices");
  p = make_problem(p, seed);
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const std::int64_t d : {3, 200, 500, 570})
      poison(p, static_cast<std::int64_t>(seed * 31 + d) % keys, d, value);
  }
  return p;
}

// `rows` are those of request `request`.
void check_values(const LatentProblem& p, const std::vector<std::uint16_t>& rows,
                  std::int64_t request) {
  const LatentStore store = {
      .format = p.format, .data = p.rows.data(), .row_stride = p.row_bytes(), .num_keys = p.keys};
  const std::int64_t dim = kLatentDim + kRopeDim,
                     page_keys = std::min(p.keys, std::int64_t{1} << p.page_shift),
                     room = (p.keys + page_keys - 1) / page_keys * page_keys;
  std::vector<float> expected(dim);
  std::int64_t off = 0;
  for (std::int64_t id = 0; id < p.keys; ++id) {
    read_latent(store, 0, id, expected.data());
    for (std::int64_t d = 0; d < dim; ++d) {
      const float found = from_bf16(rows[(request * room + id) * dim + d]);
      off += std::isnan(expected[d]) ? !std::isnan(found) : found != expected[d];
    }
  }
  expect(off == 0, p.name + ": " + std::to_string(off) + " values differ");
}

void test_expansion() {
  for (const EntryKind kind : {EntryKind::kIndices, EntryKind::kUnion}) {
    for (const int page_shift : {31, 0, 4, 6}) {
      for (const std::int64_t keys : {1, 15, 16, 130, 1000}) {
        std::vector<LatentProblem> requests = {make(7, keys, page_shift, kind, 3)};
        if (page_shift != 31) requests.push_back(make(7, keys, page_shift, kind, 4));
        Batch batch(requests);
        batch.launch(nullptr);
        finish_device(requests[0].name);
        const Result expected = batch.result();
        batch.expand();
        batch.launch(nullptr);
        finish_device(requests[0].name);
        expect(same(batch.result(), expected), requests[0].name + ": other bits");
        for (std::size_t r = 0; r < requests.size(); ++r)
          check_values(requests[r], batch.expanded_rows(), static_cast<std::int64_t>(r));
      }
    }
  }
}

// Pages below 0 or beyond the cache hold no keys: they stay so, and nothing is read there.
void test_missing_pages() {
  const LatentProblem p = make(1, 40, 3, EntryKind::kIndices, 5);
  const Placed placed = place(p);
  std::vector<std::int32_t> table = placed.table;
  table[1] = -1, table[3] = 1 << 30;
  const DeviceArray<unsigned char> bytes(placed.bytes);
  const DeviceArray<std::int32_t> from(table), to(table.size());
  const DeviceArray<std::uint16_t> rows(table.size() * 8 * (kLatentDim + kRopeDim));
  LatentExpansion expansion = {
      .from = placed.store,
      .num_pages = static_cast<std::int64_t>(placed.bytes.size()) / placed.store.page_stride,
      .rows = rows.data(),
      .table = to.data()};
  expansion.from.data = bytes.data();
  expansion.from.block_table = from.data();
  expansion.from.table_stride = static_cast<std::int64_t>(table.size());
  expand_latents_cuda(expansion, nullptr);
  finish_device("missing pages");
  expect(to.copy() == std::vector<std::int32_t>{0, -1, 2, -1, 4}, "missing pages: table");
  const std::vector<std::uint16_t> words = rows.copy();
  for (const std::int64_t page : {1, 3}) {
    for (std::int64_t i = 0; i < 8 * 576; ++i)
      expect(words[page * 8 * 576 + i] == 0xA5A5, "missing pages: a row was written");
  }
}

}  // namespace
}  // namespace indexcache::testing

int main() {
  using namespace indexcache::testing;
  if (!find_device()) return kNoDevice;
  test_expansion();
  test_missing_pages();
  return device_result("latent_expansion");
}
