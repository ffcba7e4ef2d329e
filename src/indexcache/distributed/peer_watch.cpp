#include "indexcache/distributed/peer_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kBeats = 20;  // looks at a peer before it counts as gone

constexpr seconds kEnd(2);  // for the thread to end in

std::string key_of(int rank) { return fmt::format("alive/{}", rank); }

}  // namespace

struct PeerWatch::State {
  c10::intrusive_ptr<c10d::Store> store;
  int rank = 0;
  milliseconds silence;
  std::vector<int> peers;

  std::mutex mutex;  // of what follows
  std::condition_variable changed;
  bool stop = false, ended = false;
  std::string failure;                   // what the store threw; empty: nothing
  std::vector<Clock::time_point> heard;  // of each peer, the last time; empty: not all are here yet

  void run() {
    std::vector<std::string> keys;
    for (const int peer : peers) keys.push_back(key_of(peer));
    std::vector<std::vector<std::uint8_t>> counts(keys.size());
    std::string thrown;
    std::unique_lock lock(mutex);
    for (std::int64_t beat = 0; !stop && thrown.empty(); ++beat) {
      lock.unlock();
      bool here = false;
      auto next = counts;
      try {
        store->set(key_of(rank), std::to_string(beat));
        here = store->check(keys);
        if (here) next = store->multiGet(keys);
      } catch (const std::exception& error) {
        thrown = error.what();
      }
      lock.lock();
      failure = thrown;
      if (here) heard.resize(keys.size());
      for (std::size_t i = 0; here && i < keys.size(); ++i) {
        if (next[i] != counts[i]) heard[i] = Clock::now();
      }
      counts = std::move(next);
      changed.wait_for(lock, silence / kBeats, [&] { return stop; });
    }
    ended = true;
    changed.notify_all();
  }

  void check() {
    const std::lock_guard lock(mutex);
    for (std::size_t i = 0; i < heard.size(); ++i) {
      const auto silent = Clock::now() - heard[i];
      if (silent <= silence) continue;
      if (!failure.empty()) throw device_error("the store where they meet is gone: {}", failure);
      throw device_error("the process of rank {} is gone: nothing heard of it for {} s", peers[i],
                         std::chrono::duration_cast<seconds>(silent).count());
    }
  }
};

PeerWatch::PeerWatch(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                     milliseconds silence)
    : state_(std::make_shared<State>()) {
  state_->store = std::move(store);
  state_->rank = rank;
  state_->silence = silence;
  for (int peer = 0; peer < size; ++peer) {
    if (peer != rank) state_->peers.push_back(peer);
  }
  thread_ = std::thread([state = state_] { state->run(); });
}

PeerWatch::~PeerWatch() {
  std::unique_lock lock(state_->mutex);
  state_->stop = true;
  state_->changed.notify_all();
  const bool ended = state_->changed.wait_for(lock, kEnd, [&] { return state_->ended; });
  lock.unlock();
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();  // it waits for a store whose machine has gone without a word
  }
}

void PeerWatch::all_have_come() const {
  const std::lock_guard lock(state_->mutex);
  if (state_->heard.empty()) state_->heard.resize(state_->peers.size(), Clock::now());
}

void PeerWatch::wait(c10d::Work& work, milliseconds timeout) const {
  const auto begin = Clock::now();
  std::chrono::microseconds pause(20);
  while (!work.isCompleted() && Clock::now() - begin <= timeout) {
    state_->check();
    std::this_thread::sleep_for(pause);
    pause = std::min<std::chrono::microseconds>(2 * pause, milliseconds(1));
  }
  work.wait(milliseconds(1));  // what it failed with, or that it has taken too long
}

}  // namespace indexcache
