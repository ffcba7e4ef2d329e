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

// A worker's packed queries and buffers, and the scoring of one tile.
class Scorer {
 public:
  Scorer(const IndexTopkParams& params, const ScoreKernel& kernel)
      : p_(params),
        kernel_(kernel),
        packed_bytes_((kernel.packed_bytes(p_.num_heads, p_.head_dim) + 63) / 64 * 64),
        packed_(allocate(kQueryBlock * packed_bytes_)),
        scratch_(allocate(kernel.scratch_bytes(p_.head_dim))),
        scores_(hwy::AllocateAligned<float>(kKeyTile)) {
    if (kernel.widen_keys != nullptr) {
      wide_ = hwy::AllocateAligned<float>(static_cast<std::size_t>(kKeyTile * p_.head_dim));
    }
  }

  void pack(std::int64_t first, std::int64_t last) {
    const std::int64_t row = p_.num_heads * p_.head_dim * element_size(p_.dtype);
    for (std::int64_t t = first; t < last; ++t) {
      kernel_.pack_query(static_cast<const std::uint8_t*>(p_.q) + t * row,
                         p_.weights + t * p_.num_heads, p_.num_heads, p_.head_dim,
                         packed_.get() + (t - first) * packed_bytes_);
    }
  }

  // Makes the keys [begin, end), at most kKeyTile, ready to be scored.
  void load_tile(std::int64_t begin, std::int64_t end) {
    tile_begin_ = begin;
    const auto* keys =
        static_cast<const std::uint8_t*>(p_.keys) + begin * p_.key_stride * element_size(p_.dtype);
    tile_ = keys;
    tile_stride_ = p_.key_stride;
    tile_element_ = element_size(p_.dtype);
    if (wide_ == nullptr) return;
    kernel_.widen_keys(keys, p_.key_stride, end - begin, p_.head_dim, wide_.get());
    tile_ = reinterpret_cast<const std::uint8_t*>(wide_.get());
    tile_stride_ = p_.head_dim;
    tile_element_ = sizeof(float);
  }

  // Scores of the packed query `slot` for keys [begin, end) of the tile; valid until the next call.
  const float* score(std::int64_t slot, std::int64_t begin, std::int64_t end) {
    kernel_.score_keys(packed_.get() + slot * packed_bytes_, p_.num_heads, p_.head_dim,
                       tile_ + (begin - tile_begin_) * tile_stride_ * tile_element_, tile_stride_,
                       end - begin, scratch_.get(), scores_.get());
    return scores_.get();
  }

 private:
  const IndexTopkParams& p_;
  const ScoreKernel& kernel_;
  std::int64_t packed_bytes_;
  Bytes packed_, scratch_;
  hwy::AlignedFreeUniquePtr<float[]> scores_, wide_;
  const std::uint8_t* tile_ = nullptr;
  std::int64_t tile_begin_ = 0, tile_stride_ = 0, tile_element_ = 0;
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

struct KeyRange {
  std::int64_t begin, end;
};

KeyRange query_range(const IndexTopkParams& p, std::int64_t t) {
  return {p.start[t], std::max(p.start[t], p.end[t])};
}

// Piece `piece` of the union of the block's ranges.
KeyRange piece_range(const IndexTopkParams& p, std::int64_t first, std::int64_t last,
                     std::int64_t piece, std::int64_t pieces) {
  KeyRange all{std::numeric_limits<std::int64_t>::max(), 0};
  for (std::int64_t t = first; t < last; ++t) {
    const KeyRange range = query_range(p, t);
    if (range.begin == range.end) continue;
    all.begin = std::min(all.begin, range.begin);
    all.end = std::max(all.end, range.end);
  }
  if (all.begin >= all.end) return {0, 0};
  const std::int64_t length = ((all.end - all.begin) / pieces / kKeyTile + 1) * kKeyTile;
  return {std::min(all.end, all.begin + piece * length),
          piece + 1 == pieces ? all.end : std::min(all.end, all.begin + (piece + 1) * length)};
}

void collect(const IndexTopkParams& p, Scorer& scorer, std::int64_t first, std::int64_t last,
             KeyRange piece, TopCandidates* const* candidates) {
  for (std::int64_t t = first; t < last; ++t) {
    const KeyRange range = query_range(p, t);
    candidates[t - first]->reset(
        std::max<std::int64_t>(1, std::min(p.top_k, range.end - range.begin)));
  }
  if (piece.begin == piece.end) return;
  scorer.pack(first, last);
  for (std::int64_t tile = piece.begin; tile < piece.end; tile += kKeyTile) {
    const std::int64_t tile_end = std::min(tile + kKeyTile, piece.end);
    scorer.load_tile(tile, tile_end);
    for (std::int64_t t = first; t < last; ++t) {
      const KeyRange range = query_range(p, t);
      const std::int64_t begin = std::max(tile, range.begin), end = std::min(tile_end, range.end);
      if (begin >= end) continue;
      candidates[t - first]->add(scorer.score(t - first, begin, end), end - begin,
                                 static_cast<std::int32_t>(begin));
    }
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
  for (std::int64_t t = 0; t < p.num_queries; ++t) {
    scorer.pack(t, t + 1);
    const KeyRange range = query_range(p, t);
    for (std::int64_t begin = range.begin; begin < range.end; begin += kKeyTile) {
      const std::int64_t end = std::min(begin + kKeyTile, range.end);
      scorer.load_tile(begin, end);
      std::copy_n(scorer.score(0, begin, end), end - begin, scores + t * p.num_keys + begin);
    }
  }
}

}  // namespace indexcache
