// Byte-pair encoding of one piece: its bytes' tokens, merged pair by pair, lowest rank first and
// leftmost among equals, until no neighbours have a merge.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace indexcache {

// Token ids by the bytes they stand for.
struct BytesHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view bytes) const {
    return std::hash<std::string_view>{}(bytes);
  }
};
using IdByBytes = std::unordered_map<std::string, std::int32_t, BytesHash, std::equal_to<>>;

// In a list of merges the index is the rank; of two merges of one pair the later counts.
struct Merge {
  std::int32_t left, right, result;
};

// A piece that is a token itself: is it taken at once, or only if merging leads there?
enum class WholePiece { kIsTaken, kIsMerged };

class BytePairEncoding {
 public:
  // `ids` has a token for every byte that UTF-8 can hold.
  BytePairEncoding(IdByBytes ids, const std::vector<Merge>& merges, WholePiece whole_piece);

  // What one thread works in: buffers, and a cache of the pieces met before. The cache is
  // direct-mapped, so its size is fixed: a piece takes the place of whatever shared its slot.
  class Scratch {
   public:
    Scratch() : cache_(kSlots) {}

   private:
    friend class BytePairEncoding;
    static constexpr std::size_t kSlots = 1 << 15;
    static constexpr std::size_t kMaxBytes = 26, kMaxIds = 7;
    struct Slot {
      std::array<char, kMaxBytes> bytes;
      std::uint8_t num_bytes = 0;  // 0: empty
      std::uint8_t num_ids = 0;
      std::array<std::int32_t, kMaxIds> ids;
      std::uint64_t hash = 0;
    };
    struct Symbol {
      std::int32_t id;  // kRemoved once it is merged into its left neighbour
      std::int64_t previous, next;
    };
    struct Candidate {
      std::uint32_t rank;
      std::int32_t result;
      std::int64_t position;
    };
    std::vector<Slot> cache_;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> queue_;
  };

  // Appends the ids of `piece`, not empty UTF-8. O(n log n).
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  static constexpr std::int32_t kRemoved = -1;
  struct Ranked {
    std::uint64_t pair = kNoPair;
    std::uint32_t rank = 0;
    std::int32_t result = 0;
  };
  static constexpr std::uint64_t kNoPair = ~std::uint64_t{0};

  const Ranked* find(std::int32_t left, std::int32_t right) const;
  void insert(const Merge& merge, std::uint32_t rank);
  void push_candidate(Scratch& scratch, std::int64_t position) const;
  void merge(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;

  IdByBytes ids_;
  std::array<std::int32_t, 256> byte_ids_;
  std::vector<Ranked> merges_;  // open addressing, a power of two, at most half full
  WholePiece whole_piece_;
};

}  // namespace indexcache
