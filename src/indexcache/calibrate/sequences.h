// Calibration sequences: which threads work on them, and whether they can tell index sets apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "indexcache/data/text.h"

namespace indexcache {

// Queries a chunk: all layers' index sets of one chunk are alive at once.
constexpr std::int64_t kIndexSetChunk = 512;

// How a measurement spreads over sequences. On the CPU different sequences run on different
// threads, each of which lets libtorch use one thread only, as the result of a matrix product may
// depend on the number of threads in it: so a sequence's result has the same bits on any number of
// threads. On another device sequences run one after another on the caller's thread.
struct SequenceThreads {
  bool on_device = false;
  int count = 1;

  // `asked` threads (0: as many as libtorch uses), no more than there are sequences.
  static SequenceThreads choose(bool on_device, int asked, std::size_t num_sequences);
  // Calls body for each of `sequences`; the first exception ends the run and is thrown here.
  void run(const std::vector<int>& sequences, const std::function<void(int)>& body) const;
};

// A query with fewer than k keys selects them all, whatever the layer, so comparisons of index sets
// leave it out. Throws InputError that begins with `what` unless a sequence has a query with k
// keys.
void check_some_query_selects(const std::vector<Sequence>& sequences, std::int64_t top_k,
                              std::string_view what);

}  // namespace indexcache
