// sparse_mla's Hopper kernels and index_union beside the rates of matmul and copy in the same run. docs/kernels/sparse_mla.md.
//
// Prefill: 4096 queries, 200704 keys, k 2048. A query's set has one key in each of 2048 equal stretches of the context; from one query to the
// next a key is drawn anew with probability f. Three neighbours then unite to about u = 1 + 2 f times a set. "local": 64
// neighbours share a set; "random": f = 1.
// Decode: every request has 65536 keys of context in shuffled pages of 64, its sets are uniform; calls in one graph read different keys.
#include <random>

#include "device_harness.h"
#include "indexcache/kernels/query_groups.h"
#include "indexcache/ops/index_union/index_union_params.h"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"

namespace indexcache::bench {
namespace {

constexpr std::int64_t kQueries = 4096, kKeys = 200704, kTopK = 2048;

LatentStore store_of(LatentFormat format, std::int64_t keys) {
  const std::int64_t row = latent_row_bytes(format);
  return {.format = format, .data = random_values(keys * row), .row_stride = row, .num_keys = keys};
}

// redraw(query): with which probability each of its keys changes against the query before.
std::vector<std::int32_t> make_sets(const std::function<double(std::int64_t)>& redraw) {
  constexpr std::int32_t kStretch = kKeys / kTopK;
  std::mt19937 random(5);
  std::vector<std::int32_t> sets(kQueries * kTopK);
  for (std::int64_t t = 0; t < kQueries; ++t) {
    const auto threshold = static_cast<std::uint64_t>(redraw(t) * 4294967296.0);
    for (std::int64_t i = 0; i < kTopK; ++i) {
      const bool fresh = t == 0 || random() < threshold;
      sets[t * kTopK + i] = fresh ? static_cast<std::int32_t>(i * kStretch + random() % kStretch)
                                  : sets[(t - 1) * kTopK + i];
    }
  }
  return sets;
}

struct Sets {
  std::string name;
  std::int32_t* indices;
  std::int32_t *group_begin, *entries, *counts;
  std::int64_t groups;
  double u;
};

IndexUnionParams union_params(const Sets& s) {
  return {.num_groups = s.groups,
          .group_begin = s.group_begin,
          .top_k = kTopK,
          .indices = s.indices,
          .entry_stride = kGroupQueries * kTopK,
          .entries = s.entries,
          .counts = s.counts};
}

Sets upload_sets(const std::function<double(std::int64_t)>& redraw) {
  const QueryGroups groups = query_groups({{0, kQueries}});
  Sets s;
  s.groups = static_cast<std::int64_t>(groups.request.size());
  s.indices = to_device(make_sets(redraw));
  s.group_begin = to_device(groups.begin);
  s.entries = device_memory<std::int32_t>(s.groups * kGroupQueries * kTopK);
  s.counts = device_memory<std::int32_t>(s.groups);
  require_cuda(index_union_cuda(union_params(s), nullptr), "index_union");
  std::vector<std::int32_t> counts(s.groups);
  require_cuda(cudaMemcpy(counts.data(), s.counts, s.groups * 4, cudaMemcpyDeviceToHost), "counts");
  double total = 0;
  for (const std::int32_t count : counts) total += count;
  s.u = total / static_cast<double>(kQueries) * kGroupQueries / kTopK;
  char name[32];
  std::snprintf(name, sizeof name, "u %.2f", s.u);
  s.name = name;
  return s;
}

struct Buffers {
  void *q = random_values(kQueries * 128 * 1152), *out = random_values(kQueries * 128 * 1024);
  float* lse = device_memory<float>(kQueries * 128);
};

SparseMlaWgmmaParams prefill_params(const Sets& s, const LatentStore& kv, const Buffers& b,
                                    std::int64_t heads, EntryKind kind) {
  SparseMlaWgmmaParams p = {.num_queries = kQueries,
                            .num_heads = heads,
                            .softmax_scale = 0.04f,
                            .kind = kind,
                            .kv = kv,
                            .num_groups = kQueries,
                            .entries = s.indices,
                            .entry_stride = kTopK,
                            .q = b.q,
                            .out = b.out,
                            .lse = b.lse};
  if (kind == EntryKind::kUnion) {
    p.num_groups = s.groups;
    p.group_begin = s.group_begin;
    p.entries = s.entries;
    p.entry_stride = kGroupQueries * kTopK;
    p.counts = s.counts;
  }
  return p;
}

std::string title(const char* what, const SparseMlaWgmmaParams& p) {
  return std::string(what) + (p.kv.format == LatentFormat::kE4M3 ? " e4m3 " : " bf16 ") +
         std::to_string(p.num_heads) + " heads";
}

void add_prefill(DeviceSuite& suite, const Sets& s, const SparseMlaWgmmaParams& p) {
  const bool united = p.kind == EntryKind::kUnion;
  const double rows =
      united ? s.u * static_cast<double>(s.groups) * kTopK : static_cast<double>(kQueries) * kTopK;
  suite.add(
      {title(united ? "prefill union" : "prefill", p) + " " + s.name,
       2.0 * kQueries * kTopK * static_cast<double>(p.num_heads) * 1088,
       rows * static_cast<double>(p.kv.row_stride) * (p.num_heads > 64 ? 2 : 1),
       [p](cudaStream_t stream) { require_cuda(sparse_mla_wgmma(p, stream), "sparse_mla"); }});
}

void add_prefills(DeviceSuite& suite) {
  const Buffers b;
  const LatentStore bf16 = store_of(LatentFormat::kBFloat16, kKeys),
                    e4m3 = store_of(LatentFormat::kE4M3, kKeys);
  for (const double u : {1.0, 1.25, 1.45, 2.0, 2.98}) {
    const Sets s = upload_sets([u](std::int64_t) { return std::min(1.0, (u - 1) / 1.98); });
    add_prefill(suite, s, prefill_params(s, bf16, b, 20, EntryKind::kUnion));
    if (u > 1.2 && u < 2) add_prefill(suite, s, prefill_params(s, e4m3, b, 20, EntryKind::kUnion));
    suite.add({"index_union " + s.name, 0, 4.0 * (1 + s.u / 3) * kQueries * kTopK,
               [s](cudaStream_t stream) {
                 require_cuda(index_union_cuda(union_params(s), stream), "index_union");
               }});
  }
  Sets local = upload_sets([](std::int64_t t) { return t % 64 == 0 ? 1.0 : 0.0; });
  Sets random = upload_sets([](std::int64_t) { return 1.0; });
  local.name = "local", random.name = "random";
  for (const Sets& s : {local, random}) {
    for (const std::int64_t heads : {8, 20, 64, 128}) {
      add_prefill(suite, s, prefill_params(s, bf16, b, heads, EntryKind::kIndices));
    }
    add_prefill(suite, s, prefill_params(s, e4m3, b, 64, EntryKind::kIndices));
  }
}

void add_decode(DeviceSuite& suite, const LatentStore& pages, std::int64_t heads,
                std::int64_t batch, const Buffers& b) {
  constexpr std::int64_t kContext = 65536;
  std::mt19937 random(6);
  std::vector<std::int32_t> table(batch * kContext / 64);
  for (std::int32_t& page : table)
    page = static_cast<std::int32_t>(random() % (pages.num_keys / 64));
  const std::int64_t bytes = batch * kTopK * pages.row_stride;
  const int calls = static_cast<int>(std::max<std::int64_t>(20, (std::int64_t{256} << 20) / bytes));
  std::vector<std::int32_t> sets(calls * batch * kTopK), requests(batch);
  for (std::size_t i = 0; i < sets.size(); ++i) {
    sets[i] =
        static_cast<std::int32_t>(i % kTopK * (kContext / kTopK) + random() % (kContext / kTopK));
  }
  for (std::int64_t r = 0; r < batch; ++r) requests[r] = static_cast<std::int32_t>(r);
  SparseMlaWgmmaParams p = {.num_queries = batch,
                            .num_heads = heads,
                            .softmax_scale = 0.04f,
                            .split = EntrySplit::kCluster,
                            .kv = pages,
                            .num_groups = batch,
                            .request = to_device(requests),
                            .entries = to_device(sets),
                            .entry_stride = kTopK,
                            .q = b.q,
                            .out = b.out,
                            .lse = b.lse};
  p.kv.page_shift = 6;
  p.kv.page_stride = 64 * pages.row_stride;
  p.kv.block_table = to_device(table);
  p.kv.table_stride = kContext / 64;
  p.kv.num_keys = kContext;
  suite.add({title("decode", p) + " batch " + std::to_string(batch),
             2.0 * static_cast<double>(batch * kTopK * heads) * 1088, static_cast<double>(bytes),
             [p, calls, batch](cudaStream_t stream) {
               SparseMlaWgmmaParams one = p;
               for (int call = 0; call < calls; ++call, one.entries += batch * kTopK) {
                 require_cuda(sparse_mla_wgmma(one, stream), "sparse_mla");
               }
             },
             calls});
}

}  // namespace
}  // namespace indexcache::bench

int main(int argc, char** argv) {
  using namespace indexcache::bench;
  using indexcache::LatentFormat;
  DeviceSuite suite("sparse_mla", argc, argv);
  add_prefills(suite);
  const Buffers b;
  for (const LatentFormat format : {LatentFormat::kE4M3, LatentFormat::kBFloat16}) {
    const indexcache::LatentStore pages = store_of(format, 1 << 20);
    for (const int heads : {20, 64}) {
      for (const int batch : {1, 16, 128}) add_decode(suite, pages, heads, batch, b);
    }
  }
  suite.run();
}
