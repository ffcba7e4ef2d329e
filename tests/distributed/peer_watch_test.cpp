#include "indexcache/distributed/peer_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <stdexcept>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "indexcache/base/error.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using testing::thrown;

constexpr seconds kSilence(2);
constexpr seconds kLong(60);

class NeverDone : public c10d::Work {
 public:
  bool isCompleted() override { return false; }
  bool wait(milliseconds) override { throw std::out_of_range("took too long"); }
};

// A store that can fail, or answer nothing any more.
class BadStore : public c10d::HashStore {
 public:
  void fail() { fails_ = true; }
  void hang() { hangs_ = true; }
  void answer() {
    hangs_ = false;
    hangs_.notify_all();
  }
  void set(const std::string& key, const std::vector<std::uint8_t>& value) override {
    hangs_.wait(true);
    if (fails_) throw std::runtime_error("connection lost");
    HashStore::set(key, value);
  }

 private:
  std::atomic<bool> fails_ = false, hangs_ = false;
};

// Returns when both have heard of each other.
void wait_for_both() { std::this_thread::sleep_for(milliseconds(700)); }

seconds duration(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration_cast<seconds>(std::chrono::steady_clock::now() - start);
}

TEST(PeerWatch, NamesAPeerThatIsGone) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const PeerWatch first(store, 0, 3, kSilence), third(store, 2, 3, kSilence);
  {
    const PeerWatch second(store, 1, 3, kSilence);
    wait_for_both();
  }
  NeverDone work;
  const auto taken = duration([&] {
    EXPECT_THAT(thrown<DeviceError>([&] { first.wait(work, kLong); }),
                HasSubstr("the process of rank 1 is gone: nothing heard of it for 2 s"));
  });
  EXPECT_LE(taken, 2 * kSilence);
}

TEST(PeerWatch, WaitsForPeersThatAreThere) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const PeerWatch first(store, 0, 2, kSilence), second(store, 1, 2, kSilence);
  wait_for_both();
  NeverDone work;
  const auto taken = duration([&] {
    EXPECT_EQ(thrown<std::out_of_range>([&] { first.wait(work, 2 * kSilence); }), "took too long");
  });
  EXPECT_GE(taken, 2 * kSilence);
}

TEST(PeerWatch, WaitsForOneThatHasNotComeYet) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const PeerWatch first(store, 0, 2, kSilence);
  NeverDone work;
  EXPECT_EQ(thrown<std::out_of_range>([&] { first.wait(work, 2 * kSilence); }), "took too long");
}

TEST(PeerWatch, SaysThatTheStoreIsGone) {
  const auto store = c10::make_intrusive<BadStore>();
  const PeerWatch first(store, 0, 2, kSilence), second(store, 1, 2, kSilence);
  wait_for_both();
  store->fail();
  NeverDone work;
  EXPECT_THAT(thrown<DeviceError>([&] { first.wait(work, kLong); }),
              HasSubstr("the store where they meet is gone: connection lost"));
}

TEST(PeerWatch, DoesNotWaitForAStoreThatHangs) {
  const auto store = c10::make_intrusive<BadStore>();
  const auto taken = duration([&] {
    const PeerWatch first(store, 0, 2, kSilence), second(store, 1, 2, kSilence);
    wait_for_both();
    store->hang();
    NeverDone work;
    EXPECT_THAT(thrown<DeviceError>([&] { first.wait(work, kLong); }),
                HasSubstr("the process of rank 1 is gone"));
  });
  EXPECT_LE(taken, 5 * kSilence);
  store->answer();  // ends the threads that were left
  std::this_thread::sleep_for(seconds(2));
}

}  // namespace
}  // namespace indexcache
