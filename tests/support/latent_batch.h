// LatentProblems on a GPU: their caches placed in memory as they ask, and a launch over them.
#pragma once

#include <optional>

#include "indexcache/ops/sparse_mla/latent_expansion.h"
#include "support/device_check.h"
#include "support/latent_problems.h"

namespace indexcache::testing {

struct Result {
  std::vector<std::uint16_t> out;
  std::vector<float> lse;
};

inline bool same(const Result& a, const Result& b) {
  return same_bits(a.out, b.out) && same_bits(a.lse, b.lse);
}

// The rows of all keys as the problem wants them: in order, or in shuffled pages with unused ones,
// full of NaN, between them.
struct Placed {
  std::vector<unsigned char> bytes;
  std::vector<std::int32_t> table;
  LatentStore store;
};

inline Placed place(const LatentProblem& p) {
  Placed placed;
  LatentStore& store = placed.store;
  store = {.format = p.format,
           .row_stride = p.row_bytes(),
           .page_shift = p.page_shift,
           .num_keys = p.keys};
  if (p.page_shift == 31) {
    placed.bytes = p.rows;
    return placed;
  }
  const std::int64_t page_keys = std::int64_t{1} << p.page_shift,
                     pages = (p.keys + page_keys - 1) / page_keys;
  store.row_stride += 16;
  store.page_stride = page_keys * store.row_stride + 32;
  for (std::int64_t page = 0; page < pages; ++page)
    placed.table.push_back(static_cast<std::int32_t>(2 * page + 1));
  std::shuffle(placed.table.begin(), placed.table.end(), std::mt19937(7));
  placed.bytes.assign((2 * pages + 1) * store.page_stride, 0xFF);
  for (std::int64_t s = 0; s < p.keys; ++s) {
    std::copy_n(&p.rows[s * p.row_bytes()], p.row_bytes(),
                &placed.bytes[placed.table[s >> p.page_shift] * store.page_stride +
                              s % page_keys * store.row_stride]);
  }
  return placed;
}

// Problems of equal shape as the requests of one launch, on the device. Several need pages.
class Batch {
 public:
  explicit Batch(const std::vector<LatentProblem>& requests)
      : first_(requests.front()),
        num_requests_(static_cast<std::int64_t>(requests.size())),
        host_(join(requests)),
        rows_(host_.placed.bytes),
        table_(host_.placed.table),
        q_(host_.q),
        indices_(host_.indices),
        group_begin_(host_.groups.begin),
        request_(host_.groups.request),
        out_(host_.q.size() / (kLatentDim + kRopeDim) * kLatentDim),
        lse_(host_.q.size() / (kLatentDim + kRopeDim)),
        entries_(host_.groups.request.size() * kGroupQueries * first_.top_k),
        counts_(host_.groups.request.size()) {}

  void launch(cudaStream_t stream) {
    SparseMlaWgmmaParams p = params();
    if (first_.kind == EntryKind::kUnion) unite(p, stream);
    if (expanded_rows_) {
      const LatentExpansion expansion = {.from = p.kv,
                                         .num_requests = num_requests_,
                                         .num_pages = num_pages(),
                                         .rows = expanded_rows_->data(),
                                         .table = expanded_table_->data()};
      expand_latents_cuda(expansion, stream);
      p.kv = expanded_store(expansion);
    }
    if (workspace_) p.workspace = workspace_->data();
    sparse_mla_wgmma_cuda(p, stream);
  }
  // From now on launches have a workspace, whose bytes are not 0. Returns how many: none where no work is cut.
  std::int64_t lend_workspace() {
    const std::int64_t bytes = sparse_mla_wgmma_workspace(params());
    workspace_.emplace(bytes);
    return bytes;
  }
  // From now on launches convert e4m3 latents first.
  void expand() {
    const LatentStore store = params().kv;
    expanded_rows_.emplace(expanded_keys(store, num_requests_) * (kLatentDim + kRopeDim));
    expanded_table_.emplace(num_requests_ * pages_of_request(store));
  }
  Result result() const { return {out_.copy(), lse_.copy()}; }
  const DeviceArray<std::int32_t>& indices() const { return indices_; }
  // bf16 words of [requests, pages, keys of a page, 576].
  std::vector<std::uint16_t> expanded_rows() const { return expanded_rows_->copy(); }

 private:
  SparseMlaWgmmaParams params() const {
    SparseMlaWgmmaParams p = {.num_queries = host_.num_queries,
                              .num_heads = first_.heads,
                              .softmax_scale = first_.softmax_scale,
                              .kind = first_.kind,
                              .split = first_.split,
                              .kv = host_.placed.store,
                              .num_groups = static_cast<std::int64_t>(host_.groups.request.size()),
                              .request = request_.data(),
                              .entries = indices_.data(),
                              .entry_stride = first_.top_k,
                              .q = q_.data(),
                              .out = out_.data(),
                              .lse = lse_.data()};
    p.kv.data = rows_.data();
    p.kv.block_table = host_.placed.table.empty() ? nullptr : table_.data();
    return p;
  }

  void unite(SparseMlaWgmmaParams& p, cudaStream_t stream) const {
    p.group_begin = group_begin_.data();
    p.entries = entries_.data();
    p.entry_stride = kGroupQueries * first_.top_k;
    p.counts = counts_.data();
    index_union_cuda({.num_groups = p.num_groups,
                      .group_begin = group_begin_.data(),
                      .top_k = first_.top_k,
                      .indices = indices_.data(),
                      .entry_stride = p.entry_stride,
                      .entries = entries_.data(),
                      .counts = counts_.data()},
                     stream);
  }

  std::int64_t num_pages() const {
    const Placed& placed = host_.placed;
    return placed.table.empty()
               ? 1
               : static_cast<std::int64_t>(placed.bytes.size()) / placed.store.page_stride;
  }

  struct Host {
    Placed placed;
    std::int64_t num_queries = 0;
    std::vector<std::uint16_t> q;
    std::vector<std::int32_t> indices;
    QueryGroups groups;  // kIndices: a query each
  };
  static Host join(const std::vector<LatentProblem>& requests) {
    Host host;
    std::vector<QuerySpan> spans;
    for (const LatentProblem& p : requests) {
      const Placed placed = place(p);
      auto& all = host.placed;
      all.store = placed.store;
      const std::int64_t pages =
          all.bytes.empty() ? 0
                            : static_cast<std::int64_t>(all.bytes.size()) / all.store.page_stride;
      for (const std::int32_t page : placed.table) {
        all.table.push_back(page + static_cast<std::int32_t>(pages));
      }
      all.bytes.insert(all.bytes.end(), placed.bytes.begin(), placed.bytes.end());
      all.store.table_stride = static_cast<std::int64_t>(placed.table.size());
      host.num_queries += p.queries;
      host.q.insert(host.q.end(), p.q.begin(), p.q.end());
      host.indices.insert(host.indices.end(), p.indices.begin(), p.indices.end());
      if (p.kind == EntryKind::kUnion) {
        spans.push_back({p.first_position, p.queries});
      } else {
        const auto request = static_cast<std::int32_t>(&p - requests.data());
        host.groups.request.insert(host.groups.request.end(), p.queries, request);
      }
    }
    if (!spans.empty()) host.groups = query_groups(spans);
    return host;
  }

  LatentProblem first_;
  std::int64_t num_requests_;
  Host host_;
  DeviceArray<unsigned char> rows_;
  DeviceArray<std::int32_t> table_;
  DeviceArray<std::uint16_t> q_;
  DeviceArray<std::int32_t> indices_, group_begin_, request_;
  DeviceArray<std::uint16_t> out_;
  DeviceArray<float> lse_;
  DeviceArray<std::int32_t> entries_, counts_;
  std::optional<DeviceArray<unsigned char>> workspace_;
  std::optional<DeviceArray<std::uint16_t>> expanded_rows_;
  std::optional<DeviceArray<std::int32_t>> expanded_table_;
};

}  // namespace indexcache::testing
