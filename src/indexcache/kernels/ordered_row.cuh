// A row of distinct numbers in ascending order, by a team of threads and a bit for each number.
#pragma once

#include "indexcache/kernels/ranked_select.cuh"

namespace indexcache::device {

// Where a team puts distinct numbers of [0, range) in ascending order: the row, and a bit for each number, a
// stretch of the range at a time. A thread's words of bits follow each other, a power of two of them; it is
// an odd number of words to its neighbour's, so that lanes meet no bank twice.
constexpr int kMostOrdered = 2048;
template <class Team>
constexpr int kMostWords = Team::size < 512 ? 32 : 16;
template <class Team>
constexpr int kOrderWords = kMostOrdered + Team::size*(kMostWords<Team> + 1);

template <class Team>
struct OrderRoom {
  std::uint32_t* row;  // kOrderWords words of shared memory
  int log, stride;     // of a thread's words their number, and how many it is to the next thread's

  __device__ __forceinline__ OrderRoom(std::uint32_t* room, int range) : row(room) {
    const int own = min((range + 32 * Team::size - 1) / (32 * Team::size), kMostWords<Team>);
    log = 32 - __clz(max(own, 1) - 1);
    stride = 1 << log | 1;
  }
  __device__ __forceinline__ int stretch() const { return 32 * Team::size << log; }
  // The word of a bit of the stretch.
  __device__ __forceinline__ std::uint32_t* word_of(int bit) const {
    const int word = bit >> 5;
    return row + kMostOrdered + (word >> log) * stride + (word & ((1 << log) - 1));
  }
  __device__ __forceinline__ const std::uint32_t* own_words(const Team& team) const {
    return row + kMostOrdered + team.rank * stride;
  }
  __device__ __forceinline__ void clear(const Team& team) const {
#pragma unroll 1
    for (int i = 0; i < stride; ++i) row[kMostOrdered + i * Team::size + team.rank] = 0;
  }
};

// Writes distinct numbers of [0, range), at most kMostOrdered, ascending to out[0, top_k), and -1 after them.
// for_own(visit) calls visit(number, there) for all of this thread's, those that are there. The room is
// cleared, as the team knows. Each thread counts the bits of its words and then puts their numbers in
// the row.
template <class Team, class ForOwn>
__device__ __forceinline__ void write_ordered(const Team& team, const OrderRoom<Team>& room,
                                              int range, int top_k, std::int32_t* out,
                                              SelectScratch& scratch, const ForOwn& for_own) {
  const std::uint32_t* words = room.own_words(team);
  int taken = 0;
#pragma unroll 1
  for (int base = 0; base < range; base += room.stretch()) {
    if (base > 0) {
      room.clear(team);
      team.sync();
    }
    for_own([&](int number, bool there) {
      const int bit = number - base;
      if (there && bit >= 0 && bit < room.stretch()) atomicOr(room.word_of(bit), 1u << bit % 32);
    });
    team.sync();
    unsigned own = 0, all = 0, filled = 0;  // which words have bits
#pragma unroll 1
    for (int i = 0; i < 1 << room.log; ++i) {
      const std::uint32_t word = words[i];
      own += __popc(word);
      filled |= static_cast<unsigned>(word != 0) << i;
    }
    int place = taken + static_cast<int>(sum_before(team, own, all, scratch));
    const int first = base + (team.rank * 32 << room.log);
#pragma unroll 1
    for (; filled != 0; filled &= filled - 1) {
      const int word = __ffs(static_cast<int>(filled)) - 1;
#pragma unroll 1
      for (std::uint32_t rest = words[word]; rest != 0; rest &= rest - 1) {
        room.row[place++] = first + 32 * word + __ffs(static_cast<int>(rest)) - 1;
      }
    }
    taken += static_cast<int>(all);
    team.sync();
  }
#pragma unroll 4
  for (int i = team.rank; i < top_k; i += Team::size) {
    out[i] = i < taken ? static_cast<std::int32_t>(room.row[i]) : -1;
  }
}

}  // namespace indexcache::device
