// A row of distinct numbers in ascending order, by a team of threads and a bit for each number.
#pragma once

#include "indexcache/kernels/predicated.cuh"
#include "indexcache/kernels/ranked_select.cuh"

namespace indexcache::device {

// Where a team puts distinct numbers of [0, range) in ascending order: the row, and a bit for each number, a
// stretch of the range at a time, of which each thread has as many bits, a power of two of them: some whole words that
// follow each other, with one left out behind them, so that lanes meet no bank twice where there are several; or a part of
// a word.
constexpr int kMostOrdered = 2048;
template <class Team>
constexpr int kMostWords = Team::size < 512 ? 32 : 16;
template <class Team>
constexpr int kOrderWords = kMostOrdered + 32 + Team::size*(kMostWords<Team> + 2);

template <class Team>
struct OrderRoom {
  static constexpr int kLeast = 3, kWord = 5;  // powers of two: of bits a thread, of a word's
  std::uint32_t* row;                          // kOrderWords words of shared memory
  int log;                                     // of a thread's bits

  __device__ __forceinline__ OrderRoom(std::uint32_t* room, int range) : row(room) {
    const int own = min((range + Team::size - 1) / Team::size, 32 * kMostWords<Team>);
    log = max(32 - __clz(max(own, 1) - 1), kLeast);
  }
  __device__ __forceinline__ int stretch() const { return Team::size << log; }
  __device__ __forceinline__ int log_words() const { return max(log - kWord, 0); }
  __device__ __forceinline__ int stride() const { return (1 << log_words()) + 1; }
  // A word that nobody reads, in this lane's bank.
  __device__ __forceinline__ std::uint32_t aside() const {
    return shared_address(row + kMostOrdered + threadIdx.x % 32);
  }
  // Of each thread: how many numbers are before its own.
  __device__ __forceinline__ std::uint32_t* before() const { return row + kMostOrdered + 32; }
  __device__ __forceinline__ std::uint32_t* words() const { return before() + Team::size; }
  // The address of the word of a bit of the stretch.
  __device__ __forceinline__ std::uint32_t word_of(int bit) const {
    const int word = bit >> kWord;
    return shared_address(words()) + 4 * (word + (word >> log_words()));
  }
  // This thread's bits, 32 at most: the i-th.
  __device__ __forceinline__ std::uint32_t own_bits(const Team& team, int i) const {
    if (log >= kWord) return words()[team.rank * stride() + i];
    const int first = team.rank << log;
    return words()[first >> kWord << 1] >> (first & 31) & ((1u << (1 << log)) - 1);
  }
  // Marks a number, if it is `there` and of the stretch that begins at `base`.
  __device__ __forceinline__ void mark(int number, bool there, int base = 0) const {
    const auto bit = static_cast<unsigned>(number - base);
    set_bits(
        there & (bit < static_cast<unsigned>(stretch())) ? word_of(static_cast<int>(bit)) : aside(),
        1u << bit % 32);
  }
  __device__ __forceinline__ void clear(const Team& team) const {
#pragma unroll 1
    for (int i = 0; i < stride(); ++i) words()[i * Team::size + team.rank] = 0;
  }
};

// Writes distinct numbers of [0, range), at most kMostOrdered, ascending to out[0, top_k), and -1 after them.
// for_own(visit) calls visit(number, there) for all of this thread's, those that are there. The room is cleared, or has the
// numbers of its first stretch `marked`, as the team knows. Each thread counts its bits and then puts their numbers in the
// row; where one has many, which the others would wait for, each number finds its place by itself, by the bits before its own.
template <class Team, class ForOwn>
__device__ __forceinline__ void write_ordered(const Team& team, const OrderRoom<Team>& room,
                                              bool marked, int range, int top_k, std::int32_t* out,
                                              SelectScratch& scratch, const ForOwn& for_own) {
  int taken = 0;
#pragma unroll 1
  for (int base = 0; base < range; base += room.stretch()) {
    if (base > 0) {
      room.clear(team);
      team.sync();
    }
    if (base > 0 || !marked) {
      for_own([&](int number, bool there) { room.mark(number, there, base); });
      team.sync();
    }
    unsigned own = 0, filled = 0;  // which words have bits
#pragma unroll 4
    for (int i = 0; i < 1 << room.log_words(); ++i) {
      const std::uint32_t bits = room.own_bits(team, i);
      own += __popc(bits);
      filled |= static_cast<unsigned>(bits != 0) << i;
    }
    constexpr unsigned kMany = 8 * kMostOrdered / Team::size;  // 8 times the mean of a full row
    const TeamSum sum = sum_before(team, own, own > kMany, scratch);
    int place = taken + static_cast<int>(sum.before);
    taken += static_cast<int>(sum.all);
    if (sum.any) {
      room.before()[team.rank] = place;
      team.sync();
      const auto stretch = static_cast<unsigned>(room.stretch());
      for_own([&](int number, bool there) {
        const auto bit = static_cast<unsigned>(number - base);
        if (!there || bit >= stretch) return;
        const unsigned owner = bit >> room.log;
        const std::uint32_t* words = room.words() + owner * room.stride();
        unsigned at = room.before()[owner];
#pragma unroll 1
        for (unsigned i = owner << room.log_words(); i < bit / 32; ++i) at += __popc(*words++);
        room.row[at + __popc(*words & ((1u << bit % 32) - 1))] = number;
      });
      team.sync();
      continue;
    }
    const int first = base + (team.rank << room.log), end = place + static_cast<int>(own);
    int word = 0;
    std::uint32_t rest = 0;
#pragma unroll 1
    while (place < end) {
      if (rest == 0) {
        word = __ffs(static_cast<int>(filled)) - 1;
        filled &= filled - 1;
        rest = room.own_bits(team, word);
      }
      room.row[place++] = first + 32 * word + __ffs(static_cast<int>(rest)) - 1;
      rest &= rest - 1;
    }
    team.sync();
  }
#pragma unroll 4
  for (int i = 0; i < kMostOrdered / Team::size; ++i) {
    const int at = i * Team::size + team.rank;
    const auto number = static_cast<std::int32_t>(room.row[at]);
    if (at < top_k) out[at] = at < taken ? number : -1;
  }
}

}  // namespace indexcache::device
