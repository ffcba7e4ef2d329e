#include "indexcache/calibrate/sequences.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "indexcache/base/error.h"

namespace indexcache {

SequenceThreads SequenceThreads::choose(bool on_device, int asked, std::size_t num_sequences) {
  if (on_device) return {.on_device = true, .count = 1};
  const int threads = asked > 0 ? asked : at::get_num_threads();
  return {.on_device = false, .count = std::min(threads, static_cast<int>(num_sequences))};
}

void SequenceThreads::run(const std::vector<int>& sequences,
                          const std::function<void(int)>& body) const {
  if (on_device) {
    for (const int sequence : sequences) body(sequence);
    return;
  }
  const int torch_threads = at::get_num_threads();
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    at::set_num_threads(1);
    for (std::size_t i = next++; i < sequences.size(); i = next++) {
      try {
        body(sequences[i]);
      } catch (...) {
        const std::scoped_lock lock(mutex);
        if (!failure) failure = std::current_exception();
        next = sequences.size();
      }
    }
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < std::min(count, static_cast<int>(sequences.size())); ++i) {
    workers.emplace_back(work);
  }
  for (std::thread& worker : workers) worker.join();
  at::set_num_threads(torch_threads);
  if (failure) std::rethrow_exception(failure);
}

void check_some_query_selects(const std::vector<Sequence>& sequences, std::int64_t top_k,
                              std::string_view what) {
  std::size_t longest = 0;
  for (const Sequence& sequence : sequences) {
    longest = std::max(longest, sequence.tokens.size() - 1);
  }
  if (static_cast<std::int64_t>(longest) >= top_k) return;
  throw expectation_error(fmt::format("{}: context", what),
                          fmt::format("at least index_topk = {} tokens", top_k),
                          fmt::format("{}", longest));
}

}  // namespace indexcache
