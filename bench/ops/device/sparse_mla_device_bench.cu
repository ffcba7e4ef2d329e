// sparse_mla's Hopper kernels and index_union beside the rates of matmul and copy in the same run.
// docs/kernels/sparse_mla.md.
//
// Prefill: 4096 queries, 200704 keys, k 2048. A query's set has one key in each of 2048 equal
// stretches of the context; from one query to the next a key is drawn anew with probability f.
// Three neighbours then unite to about u = 1 + 2 f times a set. "local": 64 neighbours share a set;
// "random": f = 1. Decode: every request has 65536 keys of context in shuffled pages of 64, its
// sets are uniform; calls in one graph read different keys. Real: with --sets FILE, the last 4096
// queries of each index_set.N that `indexcache trace` wrote there.
#include <random>

#include "device_harness.h"
#include "indexcache/kernels/query_groups.h"
#include "indexcache/ops/index_union/index_union_params.h"
#include "indexcache/ops/sparse_mla/latent_expansion.h"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"
#include "ops/device/trace_file.h"

// Other kernels of the same function, 64 heads, timed on the same tensors where an object that
// defines them is linked in; indices are slots. Prefill: latents in bf16; e4m3 ones are converted to
// that first, in the time. Decode: e4m3 in pages of 64.
extern "C" {
using SparseMlaPeer = void(const void* q, const void* kv, const int* indices, int queries, int keys,
                           int heads, int top_k, float scale, void* out, float* lse,
                           cudaStream_t stream);
__attribute__((weak)) SparseMlaPeer sparse_mla_prefill_peer, sparse_mla_decode_peer;
}

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
  std::int64_t top_k;
  std::int32_t* indices;
  std::int32_t *group_begin, *entries, *counts;
  std::int64_t groups;
  double u;
};

IndexUnionParams union_params(const Sets& s) {
  return {.num_groups = s.groups,
          .group_begin = s.group_begin,
          .top_k = s.top_k,
          .indices = s.indices,
          .entry_stride = kGroupQueries * s.top_k,
          .entries = s.entries,
          .counts = s.counts};
}

// `indices` [kQueries, top_k] as they are and united; `first` is the first query's position.
Sets upload_sets(const std::string& name, const std::vector<std::int32_t>& indices,
                 std::int64_t first = 0) {
  const QueryGroups groups = query_groups({{first, kQueries}});
  Sets s;
  s.name = name;
  s.top_k = static_cast<std::int64_t>(indices.size()) / kQueries;
  s.groups = static_cast<std::int64_t>(groups.request.size());
  s.indices = to_device(indices);
  s.group_begin = to_device(groups.begin);
  s.entries = device_memory<std::int32_t>(s.groups * kGroupQueries * s.top_k);
  s.counts = device_memory<std::int32_t>(s.groups);
  index_union_cuda(union_params(s), nullptr);
  std::vector<std::int32_t> counts(s.groups);
  require_cuda(cudaMemcpy(counts.data(), s.counts, s.groups * 4, cudaMemcpyDeviceToHost), "counts");
  double total = 0;
  for (const std::int32_t count : counts) total += count;
  const auto selected =
      std::count_if(indices.begin(), indices.end(), [](int id) { return id >= 0; });
  s.u = total * kGroupQueries / static_cast<double>(selected);
  std::printf("sets %s: u = %.3f\n", name.c_str(), s.u);
  return s;
}

std::vector<Sets> real_sets(const std::string& path) {
  TraceFile file(path);
  std::vector<Sets> sets;
  for (const int layer : file.layers("index_set")) {
    const auto indices = file.last_rows<std::int32_t>("index_set", layer, kQueries);
    sets.push_back(upload_sets("real, layer " + std::to_string(layer), indices,
                               file.shape("index_set", layer)[0] - kQueries));
  }
  return sets;
}

struct Buffers {
  void *q = random_values(kQueries * 128 * 1152), *out = random_values(kQueries * 128 * 1024);
  float* lse = device_memory<float>(kQueries * 128);
  char* expanded = device_memory<char>(kKeys * latent_row_bytes(LatentFormat::kBFloat16));
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
                            .entry_stride = s.top_k,
                            .q = b.q,
                            .out = b.out,
                            .lse = b.lse};
  if (kind == EntryKind::kUnion) {
    p.num_groups = s.groups;
    p.group_begin = s.group_begin;
    p.entries = s.entries;
    p.entry_stride = kGroupQueries * s.top_k;
    p.counts = s.counts;
  }
  p.workspace = device_memory<char>(sparse_mla_wgmma_workspace(p));
  return p;
}

std::string title(const char* what, const SparseMlaWgmmaParams& p) {
  return std::string(what) + (p.kv.format == LatentFormat::kE4M3 ? " e4m3 " : " bf16 ") +
         std::to_string(p.num_heads) + " heads";
}

void add_prefill(DeviceSuite& suite, const Sets& s, const SparseMlaWgmmaParams& p) {
  const bool united = p.kind == EntryKind::kUnion;
  const double selected = static_cast<double>(kQueries * s.top_k);
  const double rows = united ? selected * s.u / kGroupQueries : selected;
  suite.add({title(united ? "prefill union" : "prefill", p) + " " + s.name,
             2.0 * selected * static_cast<double>(p.num_heads) * 1088,
             rows * static_cast<double>(p.kv.row_stride) * (p.num_heads > 64 ? 2 : 1),
             [p](cudaStream_t stream) { sparse_mla_wgmma_cuda(p, stream); }});
}

// e4m3 by way of bf16, all keys converted in the time.
void add_expanded_prefill(DeviceSuite& suite, const Sets& s, SparseMlaWgmmaParams p,
                          const Buffers& b) {
  const LatentExpansion expansion = {.from = p.kv, .rows = b.expanded};
  const std::string name = title(p.kind == EntryKind::kUnion ? "prefill union" : "prefill", p);
  p.kv = expanded_store(expansion);
  const double selected = static_cast<double>(kQueries * s.top_k);
  suite.add({name + " " + s.name + ", expanded",
             2.0 * selected * static_cast<double>(p.num_heads) * 1088, 0, [=](cudaStream_t stream) {
               expand_latents_cuda(expansion, stream);
               sparse_mla_wgmma_cuda(p, stream);
             }});
}

void add_prefill_peer(DeviceSuite& suite, const Sets& s, const LatentStore& kv, const Buffers& b) {
  if (!sparse_mla_prefill_peer) return;
  const bool e4m3 = kv.format == LatentFormat::kE4M3;
  const LatentExpansion expansion = {.from = kv, .rows = b.expanded};
  const double selected = static_cast<double>(kQueries * s.top_k);
  suite.add({std::string("peer prefill ") + (e4m3 ? "e4m3" : "bf16") + " 64 heads " + s.name,
             2.0 * selected * 64 * 1088, 1152.0 * selected, [=](cudaStream_t stream) {
               if (e4m3) expand_latents_cuda(expansion, stream);
               sparse_mla_prefill_peer(b.q, e4m3 ? b.expanded : kv.data, s.indices, kQueries, kKeys,
                                       64, static_cast<int>(s.top_k), 0.04f, b.out, b.lse, stream);
             }});
}

void add_union_build(DeviceSuite& suite, const Sets& s) {
  suite.add({.name = "index_union " + s.name,
             .bytes = 4.0 * (1 + s.u / kGroupQueries) * static_cast<double>(kQueries * s.top_k),
             .run = [s](cudaStream_t stream) { index_union_cuda(union_params(s), stream); },
             .figures = {{"u", s.u}},
             .shared_by = {1, 4}});
}

void add_unions(DeviceSuite& suite, const LatentStore& bf16, const LatentStore& e4m3,
                const Buffers& b) {
  for (const double u : {1.0, 1.06, 1.12, 1.25, 1.45, 1.7, 2.0, 2.5, 2.97}) {
    char name[16];
    std::snprintf(name, sizeof name, "u %.2f", u);
    if (!suite.takes(std::string("prefill union bf16 20 heads ") + name)) continue;
    const Sets s =
        upload_sets(name, make_sets([u](std::int64_t) { return std::min(1.0, (u - 1) / 1.97); }));
    add_prefill(suite, s, prefill_params(s, bf16, b, 20, EntryKind::kUnion));
    if (u >= 2)  // where neighbours share little, a query alone may be faster
      add_prefill(suite, s, prefill_params(s, bf16, b, 20, EntryKind::kIndices));
    if (u == 1.45) {
      add_prefill(suite, s, prefill_params(s, e4m3, b, 20, EntryKind::kUnion));
      add_expanded_prefill(suite, s, prefill_params(s, e4m3, b, 20, EntryKind::kUnion), b);
      add_prefill(suite, s, prefill_params(s, bf16, b, 16, EntryKind::kUnion));
      add_prefill(suite, s, prefill_params(s, bf16, b, 8, EntryKind::kUnion));
      add_prefill_peer(suite, s, e4m3, b);
    }
    add_prefill_peer(suite, s, bf16, b);
    add_union_build(suite, s);
  }
}

void add_plain(DeviceSuite& suite, const LatentStore& bf16, const LatentStore& e4m3,
               const Buffers& b) {
  for (const bool local : {true, false}) {
    const char* name = local ? "local" : "random";
    if (!suite.takes(std::string("prefill bf16 64 heads ") + name)) continue;
    const Sets s = upload_sets(
        name, make_sets([=](std::int64_t t) { return local && t % 64 != 0 ? 0.0 : 1.0; }));
    for (const std::int64_t heads : {20, 64, 128}) {
      add_prefill(suite, s, prefill_params(s, bf16, b, heads, EntryKind::kIndices));
    }
    add_prefill(suite, s, prefill_params(s, e4m3, b, 64, EntryKind::kIndices));
    add_expanded_prefill(suite, s, prefill_params(s, e4m3, b, 64, EntryKind::kIndices), b);
    add_prefill_peer(suite, s, bf16, b);
    add_prefill_peer(suite, s, e4m3, b);
  }
}

void add_prefills(DeviceSuite& suite, const std::string& sets_path) {
  const Buffers b;
  const LatentStore bf16 = store_of(LatentFormat::kBFloat16, kKeys);
  const LatentStore e4m3 = store_of(LatentFormat::kE4M3, kKeys);
  const LatentExpansion expansion = {.from = e4m3, .rows = b.expanded};
  suite.add({"expansion of " + std::to_string(kKeys) + " keys", 0,
             static_cast<double>(kKeys * (latent_row_bytes(LatentFormat::kBFloat16) +
                                          latent_row_bytes(LatentFormat::kE4M3))),
             [=](cudaStream_t stream) { expand_latents_cuda(expansion, stream); }});
  add_unions(suite, bf16, e4m3, b);
  add_plain(suite, bf16, e4m3, b);
  if (sets_path.empty()) return;
  for (const Sets& s : real_sets(sets_path)) {
    add_prefill(suite, s, prefill_params(s, bf16, b, 20, EntryKind::kUnion));
    add_prefill_peer(suite, s, bf16, b);
    add_union_build(suite, s);
  }
}

constexpr std::int64_t kContext = 65536;

// Requests with shuffled pages, and as many sets of indices as there are calls.
struct Decode {
  std::int64_t batch;
  int calls;
  std::vector<std::int32_t> table, sets, requests;

  Decode(std::int64_t batch, const LatentStore& pages)
      : batch(batch), table(batch * kContext / 64) {
    std::mt19937 random(6);
    for (std::int32_t& page : table)
      page = static_cast<std::int32_t>(random() % (pages.num_keys / 64));
    const std::int64_t bytes = batch * kTopK * pages.row_stride;
    calls = static_cast<int>(std::max<std::int64_t>(20, (std::int64_t{256} << 20) / bytes));
    sets.resize(calls * batch * kTopK);
    constexpr std::int32_t kStretch = kContext / kTopK;
    for (std::size_t i = 0; i < sets.size(); ++i) {
      sets[i] = static_cast<std::int32_t>(i % kTopK * kStretch + random() % kStretch);
    }
    for (std::int64_t r = 0; r < batch; ++r) requests.push_back(static_cast<std::int32_t>(r));
  }
  // Each index's place in the cache.
  std::vector<std::int32_t> slots() const {
    std::vector<std::int32_t> slots(sets.size());
    for (std::size_t i = 0; i < sets.size(); ++i) {
      const std::int64_t request = static_cast<std::int64_t>(i) / kTopK % batch;
      slots[i] = table[request * kContext / 64 + sets[i] / 64] * 64 + sets[i] % 64;
    }
    return slots;
  }
};

void add_decode(DeviceSuite& suite, const LatentStore& pages, std::int64_t heads,
                std::int64_t batch, EntrySplit split, const Buffers& b) {
  SparseMlaWgmmaParams p = {.num_queries = batch,
                            .num_heads = heads,
                            .softmax_scale = 0.04f,
                            .split = split,
                            .kv = pages,
                            .num_groups = batch,
                            .entry_stride = kTopK,
                            .q = b.q,
                            .out = b.out,
                            .lse = b.lse};
  const bool whole = split == EntrySplit::kWhole;
  const std::string name =
      title("decode", p) + " batch " + std::to_string(batch) + (whole ? ", whole" : "");
  if (!suite.takes(name)) return;
  const Decode d(batch, pages);
  p.request = to_device(d.requests);
  p.entries = to_device(d.sets);
  p.kv.page_shift = 6;
  p.kv.page_stride = 64 * pages.row_stride;
  p.kv.block_table = to_device(d.table);
  p.kv.table_stride = kContext / 64;
  p.kv.num_keys = kContext;
  const double flops = 2.0 * static_cast<double>(batch * kTopK * heads) * 1088;
  const double bytes = static_cast<double>(batch * kTopK * pages.row_stride);
  const int calls = d.calls;
  suite.add({name, flops, bytes,
             [=](cudaStream_t stream) {
               SparseMlaWgmmaParams one = p;
               for (int call = 0; call < calls; ++call, one.entries += batch * kTopK) {
                 sparse_mla_wgmma_cuda(one, stream);
               }
             },
             calls});
  if (!sparse_mla_decode_peer || whole || heads != 64 || pages.format != LatentFormat::kE4M3)
    return;
  const std::int32_t* slots = to_device(d.slots());
  suite.add({"peer " + name, flops, bytes,
             [=](cudaStream_t stream) {
               for (int call = 0; call < calls; ++call) {
                 sparse_mla_decode_peer(b.q, pages.data, slots + call * batch * kTopK,
                                        static_cast<int>(batch), static_cast<int>(pages.num_keys),
                                        64, kTopK, 0.04f, b.out, b.lse, stream);
               }
             },
             calls});
}

}  // namespace
}  // namespace indexcache::bench

int main(int argc, char** argv) {
  using namespace indexcache::bench;
  using indexcache::EntrySplit;
  using indexcache::LatentFormat;
  DeviceSuite suite("sparse_mla", argc, argv);
  std::string sets_path;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--sets") sets_path = argv[i + 1];
  }
  add_prefills(suite, sets_path);
  const Buffers b;
  for (const LatentFormat format : {LatentFormat::kE4M3, LatentFormat::kBFloat16}) {
    const indexcache::LatentStore pages = store_of(format, 1 << 20);
    for (const int heads : {20, 64}) {
      for (const int batch : {1, 16, 128})
        add_decode(suite, pages, heads, batch, EntrySplit::kCluster, b);
      add_decode(suite, pages, heads, 128, EntrySplit::kWhole, b);
    }
    for (const int batch : {32, 64, 96}) {  // from how many on a CTA for each is faster
      for (const EntrySplit split : {EntrySplit::kCluster, EntrySplit::kWhole})
        add_decode(suite, pages, 64, batch, split, b);
    }
  }
  suite.run();
}
