// index_topk on Hopper: scores on the tensor cores, candidates kept as they come, selection exact.
//
// A block of two warpgroups owns a group of 8 (or 4) neighbouring queries and walks the keys of
// their ranges in tiles of 128. Keys are the rows of the matrix product, (head, query) pairs its
// columns, laid out so that a thread holds all heads of its own queries: relu, weights and the sum
// over heads stay in the thread's registers, with nothing exchanged between lanes. Every warp
// fetches its own 16 keys of a tile into its own ring in shared memory, so warps wait for no other.
//
// Selection. A sample of the keys, one of 64, is scored first; from it each query takes a threshold
// that about 2.2 k of its keys will reach. The scan then appends the keys that reach it to a list.
// If fewer than k did, the group is scanned again without threshold; where a list fills up, it is
// cut to its best k, whose least becomes the threshold. So the result is exact whatever the keys
// are; the sample decides the time only. At last a warp a query selects the best k of the list, and
// the block writes their indices in ascending order, by way of a bit for each key of the range.
//
// Few groups (decode): the range of each is cut in pieces, a block each. Every block draws the same
// sample of the whole range, hence the same thresholds, scans its piece, and adds the best k of its
// list to the query's merged list. The block that comes last selects from that, or where the sample
// misled, scans the whole range as above. No block waits for another.
//
// A score's rounding is a function of the number of heads alone: four sums, of the heads h with
// (h / 2) % 4 = 0 .. 3, each ascending in fused multiply-adds; then (s0 + s1) + (s2 + s3), times
// the key's scale.
#include <cuda_runtime.h>

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/ranked_select.cuh"
#include "indexcache/kernels/wgmma_registers.cuh"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache {
namespace {

using namespace device;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kWarpKeys = 16;  // a warp's share of a tile
constexpr int kTileKeys = kWarps * kWarpKeys;
constexpr int kTilesPerLook = kKeysPerLook / kTileKeys;
constexpr int kSampleShare = 64;  // one key of so many is sampled
constexpr int kMostSampled = 6144, kMostSampledByPiece = 1024;
constexpr int kPageKeys = 64, kPageScales = kPageKeys * 128;
static_assert(kMostSampled <= kCandidateCapacity);

struct E4m3 {
  static constexpr int kRowBytes = 128, kStages = 4;
  static constexpr bool kHasInfinity = false;
  template <int n>
  static __device__ __forceinline__ void multiply(float (&d)[n], const std::uint32_t (&a)[4],
                                                  std::uint64_t b, bool accumulate) {
    wgmma_e4m3(d, a, b, accumulate);
  }
};

struct Bf16 {
  static constexpr int kRowBytes = 256, kStages = 4;
  static constexpr bool kHasInfinity = true;
  template <int n>
  static __device__ __forceinline__ void multiply(float (&d)[n], const std::uint32_t (&a)[4],
                                                  std::uint64_t b, bool accumulate) {
    wgmma_bf16(d, a, b, accumulate);
  }
};

// Which keys a scan visits: all of [first, first + count), or a sample of them, one from each of
// `count` equal strata at a place drawn by a hash.
struct KeyWalk {
  int first = 0, count = 0;
  unsigned stratum = 0;         // 0: all keys
  unsigned long long step = 0;  // 32.32 fixed point
  __device__ __forceinline__ int key(int i) const {
    if (stratum == 0) return first + i;
    unsigned hash = static_cast<unsigned>(i) * 0x9E3779B1u;
    hash = (hash ^ hash >> 15) * 0x85EBCA77u;
    hash ^= hash >> 13;
    return first + static_cast<int>(i * step >> 32) + static_cast<int>(__umulhi(hash, stratum));
  }
};

__device__ __forceinline__ KeyWalk sampled_keys(KeyWalk keys, int most) {
  const int range = keys.count, count = min(range / kSampleShare, most);
  return {keys.first, count, static_cast<unsigned>(range / count),
          (static_cast<unsigned long long>(range) << 32) / static_cast<unsigned>(count)};
}

// What the block knows of its queries.
struct GroupState {
  RankedKey threshold[8];
  int count[8];  // candidates in the list
  int start[8], end[8];
  bool settled[8];  // the list holds all that it needs, or the result is written
  bool written[8];
  bool last;  // this block's piece was the last of its group
  SelectScratch select[kWarps];
};

__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ float relu(float x) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ int append(int* count, bool wanted) {
  int place = 0;
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %2, 0;\n@wanted atom.shared.add.s32 %0, [%1], "
      "1;\n}\n"
      : "+r"(place)
      : "r"(shared_address(count)), "r"(static_cast<int>(wanted))
      : "memory");
  return place;
}

// What an item is: a group of queries and, where the plan has pieces, one of them.
struct Item {
  int group, piece;
  int first_query, queries;
};

// Where the pieces of a query meet: [M][pieces * k] keys, their number, and how many pieces of a
// group are in.
struct MergeLists {
  RankedKey* keys;
  int* counts;
  unsigned* arrived;
  int pieces;
};

// One block's work on one item: kQueries queries (8, 4, 2 or 1), their heads in kBanks banks of
// kColumns columns. Of eight columns, those of thread c of a quad, 2 c and 2 c + 1, are
//   8 queries  two queries, one head      4 queries  one query, two heads
//   2 queries  one query, two of four heads; a sum over heads is of two threads
//   1 query    two of eight heads; of four threads
template <class Format, int kQueries, int kColumns, int kBanks, bool kPaged>
struct GroupScan {
  static constexpr int kHeadsPerBank = kColumns / kQueries;
  static constexpr int kOwn = kQueries == 8 ? 2 : 1;         // queries of a thread
  static constexpr int kSums = kQueries < 4 ? kQueries : 4;  // of the four sums, a thread's
  static constexpr int kBankBytes = kColumns * 128;          // for 128 bytes of K
  static constexpr int kWeights = kBanks * kColumns / 4;     // of a thread
  static constexpr int kRow = Format::kRowBytes, kSteps = kRow / 32, kHalves = kRow / 128;
  static constexpr int kStages = Format::kStages;
  static constexpr int kStageBytes = kWarpKeys * kRow + kWarpKeys * 4;  // keys, then their scales
  static constexpr int kQueryBytes = kBanks * kHalves * kBankBytes;
  static constexpr int kSharedBytes = kQueryBytes + kWarps * kStages * kStageBytes;

  const IndexTopkCudaParams& p;
  GroupState& state;
  std::uint8_t* shared;  // queries, then the warps' rings; at last the bits of the indices
  RankedKey* lists;      // [kQueries][kCandidateCapacity]
  MergeLists merge;
  Item item;

  // Column 2 c + e of eight columns j belongs to this query and head.
  static __device__ __forceinline__ int column_query(int c, int e) {
    return kQueries == 8 ? 2 * c + e : kQueries == 4 ? c : kQueries == 2 ? c % 2 : 0;
  }
  static __device__ __forceinline__ int column_head(int bank, int j, int c, int e) {
    const int within = kQueries == 8   ? 0
                       : kQueries == 4 ? e
                       : kQueries == 2 ? c / 2 * 2 + e
                                       : 2 * c + e;
    return bank * kHeadsPerBank + j * (8 / kQueries) + within;
  }
  // Which of the thread's sums the heads of eight columns j go to: sum (head / 2) % 4 of the four.
  static __device__ __forceinline__ int sum_of(int j) {
    return kQueries == 8 ? j / 2 % 4 : j % kSums;
  }

  // Queries into shared memory as the product's B. A thread reads a key in units of 16 bytes and feeds
  // each unit's 4 words to the product as it finds them, which permutes K: word w of unit c + 4 i
  // stands where a lane c of the fragment has its bytes of half w % 2 of step 2 i + w / 2. The
  // queries are permuted alike.
  __device__ void stage_queries() const {
    constexpr int kUnits = kRow / 16;
    for (int i = threadIdx.x; i < kBanks * kColumns * kUnits; i += kThreads) {
      const int unit = i % kUnits, column = i / kUnits % kColumns, bank = i / kUnits / kColumns;
      const int query = column_query(column % 8 / 2, column % 2);
      const int head = column_head(bank, column / 8, column % 8 / 2, column % 2);
      uint4 words = {0, 0, 0, 0};
      if (query < item.queries && head < p.num_heads) {
        const std::int64_t row = std::int64_t{item.first_query + query} * p.num_heads + head;
        words = static_cast<const uint4*>(p.q)[row * kUnits + unit];
      }
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int place = 32 * (2 * (unit / 4) + w / 2) + 16 * (w % 2) + 4 * (unit % 4);
        std::uint8_t* tile = shared + (bank * kHalves + place / 128) * kBankBytes + column * 128;
        const int swizzled = ((place % 128 / 16) ^ (column % 8)) * 16 + place % 16;
        *reinterpret_cast<std::uint32_t*>(tile + swizzled) = word[w];
      }
    }
    fence_shared_for_wgmma();
  }

  __device__ __forceinline__ std::uint8_t* stage(int tile) const {
    return shared + kQueryBytes + (threadIdx.x / 32 * kStages + tile % kStages) * kStageBytes;
  }

  __device__ __forceinline__ const std::uint8_t* page_of(int key) const {
    const int request = p.tokens_per_request > 0 ? item.group : 0;
    const std::int64_t page =
        p.block_table[std::int64_t{request} * p.table_stride + key / kPageKeys];
    return static_cast<const std::uint8_t*>(p.keys) + page * p.page_stride;
  }
  __device__ __forceinline__ const std::uint8_t* key_row(int key) const {
    if (kPaged) return page_of(key) + key % kPageKeys * kRow;
    return static_cast<const std::uint8_t*>(p.keys) + key * p.key_stride;
  }
  __device__ __forceinline__ const void* scale_of(int key) const {
    if (kPaged) return page_of(key) + kPageScales + key % kPageKeys * 4;
    return p.key_scale + key;
  }
  __device__ __forceinline__ bool has_scales() const { return kPaged || p.key_scale != nullptr; }

  // Copies this warp's 16 keys of a tile to its ring. Unit u of an odd row lies at u ^ 4, so that
  // reading fragments meets no bank twice. key(row) is the key of a row.
  template <class Key>
  __device__ __forceinline__ void copy_keys(int tile, const Key& key) const {
    constexpr int kLanesPerRow = kRow / 16, kRowsPerCopy = 32 / kLanesPerRow;
    const int lane = threadIdx.x % 32, unit = lane % kLanesPerRow;
    const std::uint32_t to = shared_address(stage(tile));
#pragma unroll
    for (int i = 0; i < kWarpKeys / kRowsPerCopy; ++i) {
      const int row = i * kRowsPerCopy + lane / kLanesPerRow;
      copy_16(to + row * kRow + (unit ^ (row & 1) << 2) * 16, key_row(key(row)) + unit * 16, true);
    }
    if (has_scales() && lane < kWarpKeys) {
      copy_4(to + kWarpKeys * kRow + lane * 4, scale_of(key(lane)));
    }
  }

  // Starts fetching this warp's keys of a tile. Past the walk's end the last key stands in.
  __device__ __forceinline__ void fetch(const KeyWalk& walk, int tile) const {
    const int first = tile * kTileKeys + threadIdx.x / 32 * kWarpKeys;
    if (walk.stratum == 0 && first + kWarpKeys <= walk.count) {
      copy_keys(tile, [&](int row) { return walk.first + first + row; });
    } else if (tile * kTileKeys < walk.count) {
      copy_keys(tile, [&](int row) { return walk.key(min(first + row, walk.count - 1)); });
    }
    commit_copies();
  }

  __device__ __forceinline__ void load_weights(float (&weights)[kWeights]) const {
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const int query = column_query(c, i % 2);
      const int head = column_head(0, i / 2, c, i % 2);  // banks follow each other
      weights[i] = query < item.queries && head < p.num_heads
                       ? p.weights[std::int64_t{item.first_query + query} * p.num_heads + head]
                       : 0.0f;
    }
  }

  __device__ __forceinline__ void load_fragments(int tile, std::uint32_t (&a)[kSteps][4]) const {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const std::uint8_t* from = stage(tile);
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int unit = (c + 4 * i) ^ (g & 1) << 2;
        const uint4 words = *reinterpret_cast<const uint4*>(from + (g + 8 * r) * kRow + unit * 16);
        a[2 * i][r] = words.x;
        a[2 * i][2 + r] = words.y;
        a[2 * i + 1][r] = words.z;
        a[2 * i + 1][2 + r] = words.w;
      }
    }
  }

  // Adds a bank's heads to sums[row of the two][own query][].
  __device__ __forceinline__ void reduce(int bank, const float (&d)[kColumns / 2],
                                         const float (&weights)[kWeights],
                                         float (&sums)[2][kOwn][kSums]) const {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int own = kQueries == 8 ? e : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float x = d[4 * j + 2 * r + e];
          if (Format::kHasInfinity && column_head(bank, j, threadIdx.x % 4, e) >= p.num_heads) {
            x = 0;  // 0 * inf is no 0
          }
          float& sum = sums[r][own][sum_of(j)];
          sum = fmaf(relu(x), weights[bank * (kColumns / 4) + 2 * j + e], sum);
        }
      }
    }
  }

  // A tile's products, with bank after bank reduced while the next is computed.
  __device__ __forceinline__ void score_tile(std::uint64_t queries,
                                             const std::uint32_t (&a)[kSteps][4],
                                             const float (&weights)[kWeights],
                                             float (&sums)[2][kOwn][kSums]) const {
    float d[kBanks][kColumns / 2];
    wgmma_fence();
#pragma unroll
    for (int bank = 0; bank < kBanks; ++bank) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int offset = (bank * kHalves + step / 4) * kBankBytes + step % 4 * 32;
        Format::multiply(d[bank], a[step], queries + offset / 16, step > 0);
      }
      wgmma_commit();
    }
#pragma unroll
    for (int bank = 0; bank < kBanks; ++bank) {
      if (bank + 1 < kBanks) {
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      wgmma_pin(d[bank]);
      reduce(bank, d[bank], weights, sums);
    }
  }

  // The four sums together, whose threads are those of a quad with the same query.
  static __device__ __forceinline__ float total(const float (&s)[kSums]) {
    if constexpr (kSums == 4) {
      return (s[0] + s[1]) + (s[2] + s[3]);
    } else if constexpr (kSums == 2) {
      return (s[0] + __shfl_xor_sync(kAllLanes, s[0], 2)) +
             (s[1] + __shfl_xor_sync(kAllLanes, s[1], 2));
    } else {
      const float pair = s[0] + __shfl_xor_sync(kAllLanes, s[0], 1);
      return pair + __shfl_xor_sync(kAllLanes, pair, 2);
    }
  }
  // Which thread of those offers a row's score.
  static __device__ __forceinline__ bool offers(int r) {
    const int c = threadIdx.x % 4;
    return kQueries >= 4 || (kQueries == 2 ? c / 2 == r : c == r);
  }

  // Appends what reaches the thresholds. place is the thread's first key's place in the walk.
  __device__ __forceinline__ void offer(const KeyWalk& walk, int place,
                                        const float (&score)[2][kOwn],
                                        const float (&floor)[kOwn]) const {
    bool any = p.scores != nullptr;
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) any |= !(score[i % 2][i / 2] < floor[i / 2]);
    if (!any) return;
    int index[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool real = offers(r) && place + 8 * r < walk.count;
      index[r] = real ? walk.key(place + 8 * r) : -1;
    }
    RankedKey key[2 * kOwn];
    bool wanted[2 * kOwn];
    int slot[2 * kOwn];
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) {
      const int query = column_query(threadIdx.x % 4, i / 2), at = index[i % 2];
      const float value = score[i % 2][i / 2];
      key[i] = ranked_key(value, at);
      const bool inside = at >= state.start[query] && at < state.end[query];
      wanted[i] = inside && key[i] >= state.threshold[query];
      if (p.scores != nullptr && inside) {
        p.scores[std::int64_t{item.first_query + query} * p.num_keys + at] = value;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) {
      slot[i] = append(&state.count[column_query(threadIdx.x % 4, i / 2)], wanted[i]);
    }
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) {
      const int query = column_query(threadIdx.x % 4, i / 2);
      if (wanted[i]) lists[query * kCandidateCapacity + slot[i]] = key[i];
    }
  }

  __device__ __forceinline__ void load_floors(float (&floor)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      floor[i] = threshold_score(state.threshold[column_query(threadIdx.x % 4, i)]);
    }
  }

  // The whole block: cuts lists that may overflow before the next look.
  __device__ __forceinline__ void look_at_counts() const {
    const int warp = threadIdx.x / 32;
    const bool full = threadIdx.x < kQueries && state.count[threadIdx.x] > kCandidateLimit &&
                      !state.settled[threadIdx.x];
    if (!__syncthreads_or(full)) return;
    if (warp < kQueries && state.count[warp] > kCandidateLimit && !state.settled[warp]) {
      RankedKey* list = lists + warp * kCandidateCapacity;
      const int size = state.count[warp];
      const RankedKey threshold =
          select_threshold(WarpTeam{}, list, size, p.top_k, state.select[warp]);
      const int kept = compact(list, size, threshold);
      if (threadIdx.x % 32 == 0) {
        state.count[warp] = kept;
        state.threshold[warp] = threshold;
      }
    }
    __syncthreads();
  }

  // Scores the keys of the walk and appends candidates.
  __device__ __forceinline__ void scan(const KeyWalk walk) const {
    float weights[kWeights], floor[kOwn];
    load_weights(weights);
    load_floors(floor);
    const std::uint64_t queries = rows_operand(shared_address(shared));
    const int tiles = (walk.count + kTileKeys - 1) / kTileKeys;
    const int row = threadIdx.x / 32 * kWarpKeys + threadIdx.x % 32 / 4;
#pragma unroll
    for (int tile = 0; tile < kStages - 1; ++tile) fetch(walk, tile);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      if (tile % kTilesPerLook == 0) {
        look_at_counts();
        load_floors(floor);
      }
      wait_for_copies<kStages - 2>();
      __syncwarp();
      std::uint32_t a[kSteps][4];
      load_fragments(tile, a);
      float scale[2] = {1.0f, 1.0f};
      if (has_scales()) {
        const auto* scales = reinterpret_cast<const float*>(stage(tile) + kWarpKeys * kRow);
        scale[0] = scales[threadIdx.x % 32 / 4];
        scale[1] = scales[threadIdx.x % 32 / 4 + 8];
      }
      fetch(walk, tile + kStages - 1);
      float sums[2][kOwn][kSums] = {};
      score_tile(queries, a, weights, sums);
      float score[2][kOwn];
#pragma unroll
      for (int i = 0; i < 2 * kOwn; ++i) {
        score[i % 2][i / 2] = total(sums[i % 2][i / 2]) * scale[i % 2];
      }
      offer(walk, tile * kTileKeys + row, score, floor);
    }
    wait_for_copies<0>();
    __syncthreads();
  }

  __device__ __forceinline__ int range(int query) const {
    return max(0, state.end[query] - state.start[query]);
  }

  // After the sample: the threshold that some more than k keys of the query will reach. The number
  // sampled among the best k is about mean, with deviation sqrt(mean) at most.
  template <class Team>
  __device__ __forceinline__ void choose_threshold(const Team& team, int query,
                                                   SelectScratch& scratch) const {
    const int sampled = state.count[query], keys = range(query);
    RankedKey threshold = kEveryKey;
    if (keys > kCandidateLimit) {
      const float mean = static_cast<float>(p.top_k) * sampled / keys;
      const int wanted = static_cast<int>(mean + 6 * sqrtf(mean)) + 4;
      if (wanted < sampled) {
        threshold =
            select_threshold(team, lists + query * kCandidateCapacity, sampled, wanted, scratch);
      }
    }
    team.sync();
    if (team.rank == 0) {
      state.threshold[query] = threshold;
      state.count[query] = 0;
    }
  }
  __device__ __forceinline__ void choose_thresholds() const {
    if (kQueries <= 2) {  // the whole block for each: sooner done
      for (int query = 0; query < item.queries; ++query) {
        choose_threshold(BlockTeam<kThreads>{}, query, state.select[0]);
      }
    } else if (threadIdx.x / 32 < item.queries) {
      choose_threshold(WarpTeam{}, threadIdx.x / 32, state.select[threadIdx.x / 32]);
    }
    __syncthreads();
  }

  // The block: writes the query's row of the result, the keys of the list that reach the threshold.
  __device__ __forceinline__ void write_row(int query, const RankedKey* list, int size,
                                            RankedKey threshold) const {
    std::int32_t* out = p.out + std::int64_t{item.first_query + query} * p.top_k;
    write_ascending<kThreads>(list, size, threshold, state.start[query], range(query), out,
                              reinterpret_cast<unsigned*>(shared), kSharedBytes / 4,
                              state.select[0]);
    for (int i = min(p.top_k, range(query)) + threadIdx.x; i < p.top_k; i += kThreads) out[i] = -1;
  }

  // What the best `taken` of a list reach.
  template <class Team>
  __device__ __forceinline__ RankedKey reached_by(const Team& team, const RankedKey* list, int size,
                                                  int taken, SelectScratch& scratch) const {
    return size > taken ? select_threshold(team, list, size, taken, scratch) : kEveryKey;
  }

  // Writes the rows of all queries that are not written, from their lists.
  __device__ __forceinline__ void finish() const {
    const int warp = threadIdx.x / 32;
    if (warp < item.queries && !state.written[warp]) {
      const RankedKey threshold =
          reached_by(WarpTeam{}, lists + warp * kCandidateCapacity, state.count[warp],
                     min(p.top_k, range(warp)), state.select[warp]);
      if (threadIdx.x % 32 == 0) state.threshold[warp] = threshold;
    }
    __syncthreads();
    for (int query = 0; query < item.queries; ++query) {
      if (state.written[query]) continue;
      write_row(query, lists + query * kCandidateCapacity, state.count[query],
                state.threshold[query]);
    }
  }

  // Reads the ranges; the keys that hold them all.
  __device__ __forceinline__ KeyWalk open_group() const {
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x, query = item.first_query + i;
      const bool real = i < item.queries;
      state.start[i] = real && p.start != nullptr ? max(0, p.start[query]) : 0;
      state.end[i] = real ? min(p.num_keys, p.end[query]) : 0;
      state.threshold[i] = kEveryKey;
      state.count[i] = 0;
      state.settled[i] = false;
      state.written[i] = false;
    }
    __syncthreads();
    int first = 0x7FFFFFFF, last = 0;
    for (int i = 0; i < kQueries; ++i) {
      if (range(i) == 0) continue;
      first = min(first, state.start[i]);
      last = max(last, state.end[i]);
    }
    // From the start of a page on, where there are pages: a warp's 16 keys are then of one page.
    if (kPaged) first = first / kPageKeys * kPageKeys;
    return last > first ? KeyWalk{first, last - first} : KeyWalk{};
  }

  // This item's piece of the keys.
  __device__ __forceinline__ KeyWalk piece_of(KeyWalk keys) const {
    const int tiles = (keys.count + kTileKeys - 1) / kTileKeys;
    const int length = (tiles + merge.pieces - 1) / merge.pieces * kTileKeys;
    const int first = min(item.piece * length, keys.count);
    return {keys.first + first, min(length, keys.count - first)};
  }

  // Whether a query's list holds its best keys; if not, it is emptied and takes every key next.
  __device__ __forceinline__ bool settle() const {
    bool again = false;
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x;
      state.settled[i] = state.settled[i] || state.count[i] >= min(p.top_k, range(i));
      again = !state.settled[i];
      state.threshold[i] = again ? kEveryKey : kNoKey;
      if (again) state.count[i] = 0;
    }
    return !__syncthreads_or(again);
  }

  // A warp: adds the best of the query's list, k at most, to the merged list.
  __device__ __forceinline__ void publish(int query) const {
    const RankedKey* list = lists + query * kCandidateCapacity;
    const int size = state.count[query], lane = threadIdx.x % 32;
    SelectScratch& scratch = state.select[query];
    const RankedKey threshold = reached_by(WarpTeam{}, list, size, p.top_k, scratch);
    const std::int64_t row = item.first_query + query;
    int at = 0;
    if (lane == 0) at = atomicAdd(&merge.counts[row], min(size, p.top_k));
    at = __shfl_sync(kAllLanes, at, 0);
    RankedKey* to = merge.keys + row * merge.pieces * p.top_k + at;
    for_each_key(WarpTeam{}, list, size, [&](RankedKey key, bool valid) {
      const bool take = valid && key >= threshold;
      const unsigned takers = __ballot_sync(kAllLanes, take);
      if (take) to[__popc(takers & ((1u << lane) - 1))] = key;
      to += __popc(takers);
    });
    __threadfence();
  }

  // After the piece was scanned. True if this block, the last of its group, must scan all keys.
  __device__ __forceinline__ bool merge_pieces() const {
    const int warp = threadIdx.x / 32;
    if (warp < item.queries) publish(warp);
    __syncthreads();
    if (threadIdx.x == 0) {
      state.last =
          atomicAdd(&merge.arrived[item.group], 1u) + 1 == static_cast<unsigned>(merge.pieces);
    }
    __syncthreads();
    if (!state.last) return false;
    __threadfence();
    bool again = false;
    for (int query = 0; query < item.queries; ++query) {
      const std::int64_t row = item.first_query + query;
      const int size = *static_cast<volatile int*>(&merge.counts[row]);
      const bool complete = size >= min(p.top_k, range(query));
      if (complete) {
        const RankedKey* list = merge.keys + row * merge.pieces * p.top_k;
        write_row(query, list, size,
                  reached_by(BlockTeam<kThreads>{}, list, size, min(p.top_k, range(query)),
                             state.select[0]));
      }
      if (threadIdx.x == 0) {
        state.settled[query] = state.written[query] = complete;
        state.threshold[query] = complete ? kNoKey : kEveryKey;
        state.count[query] = 0;
      }
      again |= !complete;
    }
    __syncthreads();
    if (again) stage_queries();  // the result's bits stood in their place
    __syncthreads();
    return again;
  }

  __device__ __forceinline__ void run() const {
    const KeyWalk keys = open_group();
    const bool split = merge.pieces > 1;
    if (keys.count == 0 && item.piece > 0) return;
    stage_queries();
    __syncthreads();
    // Rounds: the sample; the scan; where the sample misled, the scan that takes every key.
    for (int round = keys.count > kCandidateLimit ? 0 : 1; keys.count > 0; ++round) {
      KeyWalk walk = keys;
      if (round == 0) walk = sampled_keys(keys, split ? kMostSampledByPiece : kMostSampled);
      if (round == 1 && split) walk = piece_of(keys);
      scan(walk);
      if (round == 0) {
        choose_thresholds();
      } else if (round == 1 && split) {
        if (!merge_pieces()) return;
      } else if (settle()) {
        break;
      }
    }
    finish();
    __syncthreads();  // the next item changes the state
  }
};

template <class Format, int kQueries, int kColumns, int kBanks, bool kPaged>
__global__ void __launch_bounds__(kThreads, 1)
    scan_groups(const __grid_constant__ IndexTopkCudaParams p,
                const __grid_constant__ IndexTopkPlan plan) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  __shared__ GroupState state;
  auto* workspace = static_cast<std::uint8_t*>(p.workspace);
  auto* lists = reinterpret_cast<RankedKey*>(workspace) +
                std::int64_t{blockIdx.x} * kQueries * kCandidateCapacity;
  auto* counters = reinterpret_cast<int*>(workspace + plan.lists_bytes + plan.merge_bytes);
  const MergeLists merge{reinterpret_cast<RankedKey*>(workspace + plan.lists_bytes), counters,
                         reinterpret_cast<unsigned*>(counters + p.num_queries), plan.pieces};
  for (int i = blockIdx.x; i < plan.groups * plan.pieces; i += gridDim.x) {
    // Later queries usually have more keys: the longest first.
    const int group = plan.groups - 1 - i / plan.pieces, first = group * plan.queries_per_group;
    const Item item{group, i % plan.pieces, first,
                    min(plan.queries_per_group, p.num_queries - first)};
    GroupScan<Format, kQueries, kColumns, kBanks, kPaged>{p, state, shared, lists, merge, item}
        .run();
  }
}

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  index_topk_refused(what, cudaGetErrorString(result));
}

template <class Format, int kQueries, int kColumns, int kBanks, bool kPaged>
void launch(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  constexpr int kBytes = GroupScan<Format, kQueries, kColumns, kBanks, kPaged>::kSharedBytes;
  const auto kernel = scan_groups<Format, kQueries, kColumns, kBanks, kPaged>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "shared memory");
  if (plan.counter_bytes > 0) {
    auto* counters = static_cast<std::uint8_t*>(p.workspace) + plan.lists_bytes + plan.merge_bytes;
    check(cudaMemsetAsync(counters, 0, plan.counter_bytes, stream), "counters");
  }
  kernel<<<plan.blocks, kThreads, kBytes, stream>>>(p, plan);
  check(cudaGetLastError(), "launch");
}

template <bool kPaged>
void launch_e4m3(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  const bool few_heads = p.num_heads <= 32;
  switch (plan.columns_per_group) {
    case 1:
      return few_heads ? launch<E4m3, 1, 32, 1, kPaged>(p, plan, stream)
                       : launch<E4m3, 1, 64, 1, kPaged>(p, plan, stream);
    case 2:
      return few_heads ? launch<E4m3, 2, 64, 1, kPaged>(p, plan, stream)
                       : launch<E4m3, 2, 128, 1, kPaged>(p, plan, stream);
    case 4:
      return few_heads ? launch<E4m3, 4, 128, 1, kPaged>(p, plan, stream)
                       : launch<E4m3, 4, 128, 2, kPaged>(p, plan, stream);
    default:
      return p.num_heads <= 16 ? launch<E4m3, 8, 128, 1, kPaged>(p, plan, stream)
                               : launch<E4m3, 8, 128, 2, kPaged>(p, plan, stream);
  }
}

}  // namespace

void index_topk_cuda(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  if (plan.groups == 0) return;
  check_workspace(p, plan);
  if (p.format == IndexKeyFormat::kE4M3) {
    return p.block_table != nullptr ? launch_e4m3<true>(p, plan, stream)
                                    : launch_e4m3<false>(p, plan, stream);
  }
  return p.num_heads <= 32 ? launch<Bf16, 4, 128, 1, false>(p, plan, stream)
                           : launch<Bf16, 4, 128, 2, false>(p, plan, stream);
}

}  // namespace indexcache
