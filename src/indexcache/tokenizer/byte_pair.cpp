#include "indexcache/tokenizer/byte_pair.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace indexcache {
namespace {

std::uint64_t pack(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

// Fibonacci hashing: the high bits of the product are well mixed.
std::size_t slot_of(std::uint64_t pair, std::size_t num_slots) {
  return (pair * 0x9E3779B97F4A7C15u) >> (64 - std::countr_zero(num_slots));
}

}  // namespace

BytePairEncoding::BytePairEncoding(IdByBytes ids, const std::vector<Merge>& merges,
                                   WholePiece whole_piece)
    : ids_(std::move(ids)),
      merges_(std::bit_ceil(2 * merges.size() + 2)),
      whole_piece_(whole_piece) {
  for (int byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    const auto token = ids_.find(std::string_view(&character, 1));
    byte_ids_[byte] = token == ids_.end() ? kRemoved : token->second;
  }
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    insert(merges[rank], static_cast<std::uint32_t>(rank));
  }
}

void BytePairEncoding::insert(const Merge& merge, std::uint32_t rank) {
  const std::uint64_t pair = pack(merge.left, merge.right);
  std::size_t slot = slot_of(pair, merges_.size());
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) {
    slot = (slot + 1) & (merges_.size() - 1);
  }
  merges_[slot] = {pair, rank, merge.result};
}

const BytePairEncoding::Ranked* BytePairEncoding::find(std::int32_t left,
                                                       std::int32_t right) const {
  const std::uint64_t pair = pack(left, right);
  std::size_t slot = slot_of(pair, merges_.size());
  while (merges_[slot].pair != kNoPair) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    slot = (slot + 1) & (merges_.size() - 1);
  }
  return nullptr;
}

void BytePairEncoding::encode(std::string_view piece, Scratch& scratch,
                              std::vector<std::int32_t>& ids) const {
  if (piece.size() > Scratch::kMaxBytes) return merge(piece, scratch, ids);
  const std::uint64_t hash = std::hash<std::string_view>{}(piece);
  Scratch::Slot& slot = scratch.cache_[hash & (Scratch::kSlots - 1)];
  if (slot.hash == hash && slot.num_bytes == piece.size() &&
      std::memcmp(slot.bytes.data(), piece.data(), piece.size()) == 0) {
    ids.insert(ids.end(), slot.ids.begin(), slot.ids.begin() + slot.num_ids);
    return;
  }
  const std::size_t before = ids.size();
  merge(piece, scratch, ids);
  const std::size_t num_ids = ids.size() - before;
  if (num_ids > Scratch::kMaxIds) return;
  slot.hash = hash;
  slot.num_bytes = static_cast<std::uint8_t>(piece.size());
  slot.num_ids = static_cast<std::uint8_t>(num_ids);
  std::copy(piece.begin(), piece.end(), slot.bytes.begin());
  std::copy(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end(), slot.ids.begin());
}

// Queues the merge of the symbol at `position` with its right neighbour, if there is one.
void BytePairEncoding::push_candidate(Scratch& scratch, std::int64_t position) const {
  const auto& symbols = scratch.symbols_;
  const std::int64_t next = symbols[position].next;
  if (next == static_cast<std::int64_t>(symbols.size())) return;
  const Ranked* const merge = find(symbols[position].id, symbols[next].id);
  if (merge) scratch.queue_.push_back({merge->rank, merge->result, position});
}

void BytePairEncoding::merge(std::string_view piece, Scratch& scratch,
                             std::vector<std::int32_t>& ids) const {
  if (whole_piece_ == WholePiece::kIsTaken) {
    if (const auto token = ids_.find(piece); token != ids_.end()) {
      ids.push_back(token->second);
      return;
    }
  }
  auto& symbols = scratch.symbols_;
  auto& queue = scratch.queue_;
  const auto size = static_cast<std::int64_t>(piece.size());
  symbols.clear();
  queue.clear();
  for (std::int64_t i = 0; i < size; ++i) {
    symbols.push_back({byte_ids_[static_cast<unsigned char>(piece[i])], i - 1, i + 1});
  }
  for (std::int64_t i = 0; i < size; ++i) push_candidate(scratch, i);
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  std::make_heap(queue.begin(), queue.end(), later);
  const auto push = [&](std::int64_t position) {
    const std::size_t before = queue.size();
    push_candidate(scratch, position);
    if (queue.size() != before) std::push_heap(queue.begin(), queue.end(), later);
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), later);
    const Scratch::Candidate best = queue.back();
    queue.pop_back();
    Scratch::Symbol& left = symbols[best.position];
    if (left.id == kRemoved || left.next == size) continue;
    Scratch::Symbol& right = symbols[left.next];
    // A candidate is stale once one of its symbols was merged elsewhere.
    const Ranked* const merge = find(left.id, right.id);
    if (!merge || merge->result != best.result) continue;
    left.id = best.result;
    left.next = right.next;
    right.id = kRemoved;
    if (left.next != size) symbols[left.next].previous = best.position;
    if (left.previous >= 0) push(left.previous);
    push(best.position);
  }
  for (std::int64_t i = 0; i < size; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace indexcache
