// Waiting for the processes of a group while they are there. A process that has died is noticed by
// what it no longer leaves in a store that all of them see: NCCL is not known to notice it by
// itself, Gloo does mostly at once, but not always.
#pragma once

#include <chrono>
#include <memory>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace indexcache {

class PeerWatch {
 public:
  static constexpr std::chrono::seconds kSilence{20};

  // Starts a thread that, 20 times in `silence` and whatever the process itself is at, counts up a
  // key of this process in the store and looks at those of its peers. A peer whose key stands still
  // for `silence` is gone; one that has not come yet is not. Only this thread waits for the store.
  PeerWatch(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
            std::chrono::milliseconds silence = kSilence);
  ~PeerWatch();
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  // All peers have come, as an operation among them has shown: from now on one of which nothing was heard yet is watched, too.
  void all_have_come() const;

  // Returns when the work is done. Throws what it failed with, or what it says when `timeout` is
  // over, and DeviceError when a peer or the store is gone.
  void wait(c10d::Work& work, std::chrono::milliseconds timeout) const;

 private:
  struct State;
  // The thread's too: it may wait for the store for longer than this lives.
  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace indexcache
