// index_topk on the CPU: scores of a block of queries against a tile of keys, filtered as they
// come.
//
// A worker owns an item: kQueryBlock queries x a piece of their key range. It packs the queries
// once (H x D each) and walks the piece in tiles of kKeyTile keys, which stay in its L2 while every
// query of the block is scored against them; each run of scores (a few KB) goes straight into the
// query's TopCandidates. So memory is candidates, O(k) a query in flight, never [M, N].
//
// With few queries the key range is split over items too, and each query's pieces are merged in the
// order of their keys: the result is the same set, whatever the split.
//
// Per query and key: 2 H D flops; a key's bytes come from memory once per query block.
#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "indexcache/kernels/top_candidates.h"
#include "indexcache/ops/index_topk/index_topk_kernels.h"

namespace indexcache {
namespace {

constexpr std::int64_t kQueryBlock = 8;
constexpr std::int64_t kKeyTile = 5 * kScoreGroup;
static_assert(kKeyTile <= TopCandidates::kMaxBatch);
constexpr std::int64_t kMinPiece = 2 * kKeyTile;  // keys worth an item
constexpr std::int64_t kItemsPerWorker = 4;       // enough to even out what the machine disturbs

ScoreKernel choose_kernel(IndexDType dtype) {
  if (dtype == IndexDType::kBFloat16) {
    const ScoreKernel kernel = avx512_bf16_score_kernel();
    if (kernel.packed_bytes != nullptr) return kernel;
  }
  return highway_score_kernel(dtype);
}

std::int64_t element_size(IndexDType dtype) { return dtype == IndexDType::kFloat32 ? 4 : 2; }

using Bytes = hwy::AlignedFreeUniquePtr<std::uint8_t[]>;
Bytes allocate(std::int64_t bytes) {
  return hwy::AllocateAligned<std::uint8_t>(static_cast<std::size_t>(bytes));
}

struct KeyRange {
  std::int64_t begin, end;
  bool empty() const { return begin >= end; }
};

KeyRange query_range(const IndexTopkParams& p, std::int64_t t) { return {p.start[t], p.end[t]}; }

// The smallest range that holds the ranges of queries [first, last).
KeyRange hull(const IndexTopkParams& p, std::int64_t first, std::int64_t last) {
  KeyRange all{std::numeric_limits<std::int64_t>::max(), 0};
  for (std::int64_t t = first; t < last; ++t) {
    const KeyRange range = query_range(p, t);
    if (range.empty()) continue;
    all = {std::min(all.begin, range.begin), std::max(all.end, range.end)};
  }
  return all.empty() ? KeyRange{0, 0} : all;
}

KeyRange intersect(KeyRange a, KeyRange b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// A worker's packed queries and buffers, and the scoring of one tile.
class Scorer {
 public:
  Scorer(const IndexTopkParams& params, const ScoreKernel& kernel)
      : p_(params),
        kernel_(kernel),
        per_pass_(std::min(kQueryBlock, kernel.queries_per_pass(p_.num_heads))),
        packed_bytes_((kernel.packed_bytes(p_.num_heads, p_.head_dim) + 63) / 64 * 64),
        packed_(allocate((kQueryBlock + per_pass_ - 1) / per_pass_ * packed_bytes_)),
        scratch_(allocate(kernel.scratch_bytes(p_.head_dim))),
        scores_(hwy::AllocateAligned<float>(static_cast<std::size_t>(per_pass_ * kScoreStride))) {
    if (kernel.widen_keys != nullptr) {
      wide_ = hwy::AllocateAligned<float>(static_cast<std::size_t>(kKeyTile * p_.head_dim));
    }
  }

  // Queries [first, last), at most kQueryBlock.
  void pack(std::int64_t first, std::int64_t last) {
    first_ = first;
    last_ = last;
    const std::int64_t row = p_.num_heads * p_.head_dim * element_size(p_.dtype);
    for (std::int64_t t = first; t < last; t += per_pass_) {
      kernel_.pack_queries(static_cast<const std::uint8_t*>(p_.q) + t * row,
                           p_.weights + t * p_.num_heads, std::min(per_pass_, last - t),
                           p_.num_heads, p_.head_dim, packed(t));
    }
  }

  // Scores the packed queries for the keys of the tile, at most kKeyTile, that are in their ranges,
  // and gives each query's to take(query, first key, scores, count).
  template <typename Take>
  void score_tile(KeyRange tile, const Take& take) {
    const std::uint8_t* keys = static_cast<const std::uint8_t*>(p_.keys) +
                               tile.begin * p_.key_stride * element_size(p_.dtype);
    std::int64_t stride = p_.key_stride, element = element_size(p_.dtype);
    if (wide_ != nullptr) {
      kernel_.widen_keys(keys, stride, tile.end - tile.begin, p_.head_dim, wide_.get());
      keys = reinterpret_cast<const std::uint8_t*>(wide_.get());
      stride = p_.head_dim;
      element = sizeof(float);
    }
    for (std::int64_t t = first_; t < last_; t += per_pass_) {
      const std::int64_t pass_end = std::min(t + per_pass_, last_);
      const KeyRange run = intersect(tile, hull(p_, t, pass_end));
      if (run.empty()) continue;
      kernel_.score_keys({.packed = packed(t),
                          .queries = pass_end - t,
                          .heads = p_.num_heads,
                          .dim = p_.head_dim,
                          .keys = keys + (run.begin - tile.begin) * stride * element,
                          .key_stride = stride,
                          .count = run.end - run.begin,
                          .scratch = scratch_.get(),
                          .scores = scores_.get(),
                          .score_stride = kScoreStride});
      for (std::int64_t query = t; query < pass_end; ++query) {
        const KeyRange own = intersect(run, query_range(p_, query));
        if (own.empty()) continue;
        take(query, own.begin, scores_.get() + (query - t) * kScoreStride + (own.begin - run.begin),
             own.end - own.begin);
      }
    }
  }

 private:
  static constexpr std::int64_t kScoreStride = kKeyTile + TopCandidates::kSlack;

  std::uint8_t* packed(std::int64_t t) {
    return packed_.get() + (t - first_) / per_pass_ * packed_bytes_;
  }

  const IndexTopkParams& p_;
  const ScoreKernel& kernel_;
  std::int64_t per_pass_, packed_bytes_;
  Bytes packed_, scratch_;
  hwy::AlignedFreeUniquePtr<float[]> scores_, wide_;
  std::int64_t first_ = 0, last_ = 0;
};

// How the queries' work is cut: blocks of queries, each block's key range in `pieces` pieces.
struct Plan {
  std::int64_t blocks, pieces;

  Plan(const IndexTopkParams& p, int workers)
      : blocks((p.num_queries + kQueryBlock - 1) / kQueryBlock), pieces(1) {
    if (blocks == 0 || workers == 1) return;
    const std::int64_t wanted = (kItemsPerWorker * workers + blocks - 1) / blocks;
    if (blocks < kItemsPerWorker * workers) {
      pieces = std::clamp<std::int64_t>(p.num_keys / kMinPiece, 1, wanted);
    }
  }
};

// Piece `piece` of the hull of the block's ranges.
KeyRange piece_range(const IndexTopkParams& p, std::int64_t first, std::int64_t last,
                     std::int64_t piece, std::int64_t pieces) {
  const KeyRange all = hull(p, first, last);
  const std::int64_t length = ((all.end - all.begin) / pieces / kKeyTile + 1) * kKeyTile;
  return intersect(all, {all.begin + piece * length, all.begin + (piece + 1) * length});
}

// The best of every query of [first, last) within the piece; candidates[t - first] takes query t's.
void collect(const IndexTopkParams& p, Scorer& scorer, std::int64_t first, std::int64_t last,
             KeyRange piece, TopCandidates* const* candidates) {
  for (std::int64_t t = first; t < last; ++t) {
    const KeyRange range = query_range(p, t);
    candidates[t - first]->reset(std::clamp<std::int64_t>(range.end - range.begin, 1, p.top_k));
  }
  if (piece.empty()) return;
  scorer.pack(first, last);
  for (std::int64_t tile = piece.begin; tile < piece.end; tile += kKeyTile) {
    scorer.score_tile(
        {tile, std::min(tile + kKeyTile, piece.end)},
        [&](std::int64_t t, std::int64_t key, const float* scores, std::int64_t count) {
          candidates[t - first]->add(scores, count, static_cast<std::int32_t>(key));
        });
  }
  for (std::int64_t t = first; t < last; ++t) candidates[t - first]->shrink();
}

void write_row(const IndexTopkParams& p, std::int64_t t, const TopCandidates& best) {
  std::int32_t* out = p.out + t * p.top_k;
  std::int32_t* end = std::transform(best.indices(), best.indices() + best.size(), out,
                                     [&](std::int32_t index) { return index - p.start[t]; });
  std::fill(end, out + p.top_k, -1);
}

}  // namespace

void index_topk_cpu(const IndexTopkParams& p, const Parallel& parallel) {
  const ScoreKernel kernel = choose_kernel(p.dtype);
  const Plan plan(p, parallel.num_workers);
  // With pieces, every (query, piece) keeps its candidates for the merge.
  std::vector<TopCandidates> kept(
      static_cast<std::size_t>(plan.pieces > 1 ? p.num_queries * plan.pieces : 0));

  std::atomic<std::int64_t> next{0};
  parallel.run([&](int) {
    Scorer scorer(p, kernel);
    std::vector<TopCandidates> own(kQueryBlock);
    for (std::int64_t item; (item = next.fetch_add(1)) < plan.blocks * plan.pieces;) {
      const std::int64_t piece = item % plan.pieces;
      const std::int64_t first = item / plan.pieces * kQueryBlock;
      const std::int64_t last = std::min(first + kQueryBlock, p.num_queries);
      TopCandidates* candidates[kQueryBlock];
      for (std::int64_t t = first; t < last; ++t) {
        candidates[t - first] = plan.pieces > 1 ? &kept[t * plan.pieces + piece] : &own[t - first];
      }
      collect(p, scorer, first, last, piece_range(p, first, last, piece, plan.pieces), candidates);
      if (plan.pieces > 1) continue;
      for (std::int64_t t = first; t < last; ++t) write_row(p, t, own[t - first]);
    }
  });
  if (plan.pieces == 1) return;

  next = 0;
  parallel.run([&](int) {
    for (std::int64_t t; (t = next.fetch_add(1)) < p.num_queries;) {
      TopCandidates& best = kept[t * plan.pieces];
      for (std::int64_t piece = 1; piece < plan.pieces; ++piece) {
        best.append(kept[t * plan.pieces + piece]);
      }
      best.shrink();
      write_row(p, t, best);
    }
  });
}

void index_scores_cpu(const IndexTopkParams& p, float* scores) {
  const ScoreKernel kernel = choose_kernel(p.dtype);
  Scorer scorer(p, kernel);
  std::fill_n(scores, p.num_queries * p.num_keys, -std::numeric_limits<float>::infinity());
  for (std::int64_t first = 0; first < p.num_queries; first += kQueryBlock) {
    const std::int64_t last = std::min(first + kQueryBlock, p.num_queries);
    scorer.pack(first, last);
    const KeyRange all = hull(p, first, last);
    for (std::int64_t tile = all.begin; tile < all.end; tile += kKeyTile) {
      scorer.score_tile(
          {tile, std::min(tile + kKeyTile, all.end)},
          [&](std::int64_t t, std::int64_t key, const float* run, std::int64_t count) {
            std::copy_n(run, count, scores + t * p.num_keys + key);
          });
    }
  }
}

}  // namespace indexcache
