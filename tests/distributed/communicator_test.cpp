// Groups of real processes on this machine: over Gloo and, with a GPU for each, over NCCL.
#include "indexcache/distributed/communicator.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"
#include "support/processes.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::ReservedPort;
using testing::run_processes;
using testing::TemporaryFolder;
using testing::thrown;

// What must happen at once is looked for under the long one, so that it cannot come from it.
constexpr seconds kLongTimeout(100);
constexpr seconds kShortTimeout(2);
constexpr seconds kEnoughToJoin(8);  // also on a busy machine
constexpr seconds kEnoughToJoinWithCuda(20);

// Asked in a process of its own: CUDA does not outlive a fork.
int number_of_gpus() {
  static const int count = [] {
    const auto process = ::fork();
    if (process == 0) ::_exit(at::hasCUDA() ? static_cast<int>(at::getNumGPUs()) : 0);
    int status = 0;
    return ::waitpid(process, &status, 0) == process && WIFEXITED(status) ? WEXITSTATUS(status) : 0;
  }();
  return count;
}

struct GroupKind {
  at::DeviceType device = at::kCPU;
  int size = 2;

  at::Device device_of(int rank) const {
    return device == at::kCPU ? at::Device(at::kCPU)
                              : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(rank));
  }
};

GroupPlace place_of(int rank, int size, const ReservedPort& port) {
  return {.rank = rank, .size = size, .address = "127.0.0.1", .port = port.number()};
}

// Runs body in every process of a group; the second argument is where the process's tensors are.
std::vector<std::string> in_group(const GroupKind& kind,
                                  const std::function<void(const Communicator&, at::Device)>& body,
                                  seconds timeout = kLongTimeout) {
  const ReservedPort port;
  return run_processes(kind.size, [&](int rank) {
    const auto device = kind.device_of(rank);
    const auto group = Communicator::join(place_of(rank, kind.size, port), device, timeout);
    EXPECT_EQ(group.rank(), rank);
    EXPECT_EQ(group.size(), kind.size);
    body(group, device);
  });
}

void wait_for(const std::filesystem::path& file) {
  while (!std::filesystem::exists(file)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

// The message of the DeviceError that `call` must throw, before the long timeout.
template <typename Call>
std::string failure(const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  auto message = thrown<DeviceError>(call);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(30));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
  return message;
}

TEST(Communicator, AloneChangesNothing) {
  const GroupPlace one;
  for (const auto& group : {Communicator(), Communicator::join(one, at::kCPU, kShortTimeout)}) {
    EXPECT_EQ(group.rank(), 0);
    EXPECT_EQ(group.size(), 1);
    const std::vector<at::Tensor> tensors = {at::full({2}, 1.5), at::full({1}, 7, at::kLong)};
    group.sum(tensors);
    EXPECT_TRUE(at::equal(tensors[0], at::full({2}, 1.5)));
    EXPECT_TRUE(at::equal(tensors[1], at::full({1}, 7, at::kLong)));
    EXPECT_EQ(group.from_first(0.1), 0.1);
    group.barrier();
  }
}

TEST(Communicator, RefusesWhatCannotBe) {
  const auto refused = [](GroupPlace place, at::Device device = at::kCPU) {
    return thrown<InputError>([&] { Communicator::join(place, device, kShortTimeout); });
  };
  const GroupPlace good{.rank = 0, .size = 2, .address = "localhost", .port = 1};
  auto bad = good;
  bad.size = 0;
  EXPECT_EQ(refused(bad), "process group: size: expected 1 or more, found 0");
  bad = good;
  bad.rank = 2;
  EXPECT_EQ(refused(bad), "process group: rank: expected one in [0, 2), found 2");
  bad.rank = -1;
  EXPECT_EQ(refused(bad), "process group: rank: expected one in [0, 2), found -1");
  bad = good;
  bad.address = "";
  EXPECT_EQ(refused(bad), "process group: address: expected a host name or an address, found none");
  for (const int port : {0, -1, 65536}) {
    bad = good;
    bad.port = port;
    EXPECT_THAT(refused(bad), HasSubstr("port: expected one in [1, 65535], found"));
  }
  EXPECT_THAT(refused(good, at::kMeta), HasSubstr("process group: device: expected cpu"));

  const std::vector<at::Tensor> tensors = {at::ones({1}), at::ones({1}, at::kBFloat16)};
  EXPECT_EQ(thrown<InputError>([&] { Communicator().sum(tensors); }),
            "Communicator::sum: tensor 1: expected fp32, fp64 or int64, found BFloat16");
}

class GroupOf : public ::testing::TestWithParam<GroupKind> {
 protected:
  void SetUp() override {
    if (kind().device != at::kCPU && kind().size > number_of_gpus()) {
      GTEST_SKIP() << "needs " << kind().size << " GPUs, found " << number_of_gpus();
    }
  }
  static const GroupKind& kind() { return GetParam(); }
  static int size() { return kind().size; }
  static seconds enough_to_join() {
    return kind().device == at::kCPU ? kEnoughToJoin : kEnoughToJoinWithCuda;
  }
};
INSTANTIATE_TEST_SUITE_P(
    Communicator, GroupOf,
    ::testing::Values(GroupKind{at::kCPU, 2}, GroupKind{at::kCPU, 3}, GroupKind{at::kCUDA, 2}),
    [](const auto& info) {
      return fmt::format("{}{}", info.param.device == at::kCPU ? "Cpu" : "Cuda", info.param.size);
    });

TEST_P(GroupOf, SumsEachTensorInPlace) {
  const auto outcomes = in_group(kind(), [&](const Communicator& group, at::Device device) {
    const at::TensorOptions fp32(device), fp64 = fp32.dtype(at::kDouble),
                                          int64 = fp32.dtype(at::kLong);
    const int mine = group.rank() + 1;
    const std::int64_t big = std::int64_t{1} << 60;  // no double holds big + 1
    const std::vector<at::Tensor> tensors = {
        at::arange(6, fp32).reshape({2, 3}) * mine,        // in a bucket,
        at::full({}, big + mine, int64),                   // a scalar, alone in its bucket
        at::empty({0, 4}, fp32),                           // nothing
        at::zeros({3, 2}, fp32).t(),                       // strided
        at::full({2}, mine, fp64) * 0x1p-30 + 1,           // no fp32 holds it
        at::full({1}, 0.5 * mine, fp32).requires_grad_(),  // a parameter
    };
    tensors[3].fill_(10 * mine);
    const auto same = tensors[0];  // the caller's other handles see the sum
    group.sum(tensors);
    const int sum = size() == 2 ? 3 : 6;  // 1 + 2, 1 + 2 + 3
    EXPECT_TRUE(at::equal(same, at::arange(6, fp32).reshape({2, 3}) * sum));
    EXPECT_EQ(tensors[1].item<std::int64_t>(), size() * big + sum);
    EXPECT_EQ(tensors[2].numel(), 0);
    EXPECT_TRUE(at::equal(tensors[3], at::full({2, 3}, 10 * sum, fp32)));
    EXPECT_TRUE(at::equal(tensors[4], at::full({2}, sum * 0x1p-30 + size(), fp64)));
    EXPECT_EQ(tensors[5].item<float>(), 0.5F * static_cast<float>(sum));

    // One strided tensor alone in its bucket; then nothing at all.
    const std::vector<at::Tensor> strided = {at::zeros({2, 4}, fp32).t()};
    strided[0].fill_(mine);
    group.sum(strided);
    EXPECT_TRUE(at::equal(strided[0], at::full({4, 2}, sum, fp32)));
    group.sum({});
  });
  EXPECT_THAT(outcomes, Each("passed"));
}

std::uint64_t hash_of(const at::Tensor& values) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over the bits
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    hash = (hash ^ std::bit_cast<std::uint32_t>(values.data_ptr<float>()[i])) * 0x100000001b3;
  }
  return hash;
}

// Rounding depends on the order of the addends, so these sums tell orders apart.
TEST_P(GroupOf, SumsToTheSameBitsEverywhereAndEveryTime) {
  constexpr std::int64_t kCount = 70001;
  const auto draw = [](int rank) {
    std::mt19937_64 random(static_cast<std::uint64_t>(rank));
    auto values = at::empty({kCount}, at::kFloat);
    for (std::int64_t i = 0; i < kCount; ++i) {
      values.data_ptr<float>()[i] = static_cast<float>(draw_unit(random) - 0.5);
    }
    return values;
  };
  const auto outcomes = in_group(kind(), [&](const Communicator& group, at::Device device) {
    const auto drawn = [&] {
      return std::vector<at::Tensor>{draw(group.rank()).to(device), at::ones({3}, device)};
    };
    const auto first = drawn(), second = drawn();
    group.sum(first);
    group.sum(second);
    EXPECT_TRUE(at::equal(first[0], second[0]));
    const auto found = first[0].cpu();
    const auto hash = static_cast<double>(hash_of(found) >> 12);  // 52 bits: exact
    EXPECT_EQ(group.from_first(hash), hash);

    auto expected = at::zeros({kCount}, at::kDouble);
    for (int rank = 0; rank < size(); ++rank) expected += draw(rank).to(at::kDouble);
    // size - 1 roundings of partial sums of magnitude at most size / 2.
    const double bound = (size() - 1) * 0x1p-24 * size() / 2;
    EXPECT_LE((found.to(at::kDouble) - expected).abs().max().item<double>(), bound);
  });
  EXPECT_THAT(outcomes, Each("passed"));
}

TEST_P(GroupOf, TakesTheFirstsValueToTheBit) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto outcomes = in_group(kind(), [&](const Communicator& group, at::Device) {
    for (const double value : {0.1, -0.0, -infinity, std::nan(""), 0x1p-1074}) {
      const auto taken = group.from_first(group.rank() == 0 ? value : 1e300 + group.rank());
      EXPECT_EQ(std::bit_cast<std::uint64_t>(taken), std::bit_cast<std::uint64_t>(value));
    }
  });
  EXPECT_THAT(outcomes, Each("passed"));
}

TEST_P(GroupOf, BarrierWaitsForTheLast) {
  const TemporaryFolder folder;
  const auto outcomes = in_group(kind(), [&](const Communicator& group, at::Device) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200 * group.rank()));
    folder.write(std::to_string(group.rank()), "here");
    group.barrier();
    for (int rank = 0; rank < group.size(); ++rank) {
      EXPECT_TRUE(std::filesystem::exists(folder.path() / std::to_string(rank))) << rank;
    }
  });
  EXPECT_THAT(outcomes, Each("passed"));
}

TEST(Communicator, MeetsAtALauncher) {
  const ReservedPort port;
  const TemporaryFolder folder;
  const auto outcomes = run_processes(3, [&](int process) {
    if (process == 2) {
      c10d::TCPStoreOptions options;
      options.port = static_cast<std::uint16_t>(port.number());
      options.isServer = true;
      const c10d::TCPStore store("127.0.0.1", options);
      wait_for(folder.path() / "0");
      wait_for(folder.path() / "1");
      return;
    }
    auto place = place_of(process, 2, port);
    place.meeting = Meeting::kAtLauncher;
    for (place.attempt = 0; place.attempt < 3; ++place.attempt) {
      const std::vector<at::Tensor> tensors = {at::ones({1})};
      Communicator::join(place, at::kCPU, kLongTimeout).sum(tensors);
      EXPECT_EQ(tensors[0].item<float>(), 2);
    }
    folder.write(std::to_string(process), "done");
  });
  EXPECT_THAT(outcomes, Each("passed"));
}

TEST(Communicator, SaysThatAPeerNeverCame) {
  for (const int rank : {0, 1}) {
    const ReservedPort port;
    const auto outcomes = run_processes(1, [&](int) {
      const auto message =
          failure([&] { Communicator::join(place_of(rank, 2, port), at::kCPU, kShortTimeout); });
      EXPECT_THAT(message, HasSubstr(fmt::format("process group of 2, rank {}, meeting at "
                                                 "\"127.0.0.1\" port {}: cannot join: ",
                                                 rank, port.number())));
      EXPECT_THAT(message, ::testing::ContainsRegex("[Tt]imed out|timeout"));
    });
    EXPECT_THAT(outcomes, ElementsAre("passed"));
  }
}

TEST(Communicator, SaysThatThePortIsInUse) {
  ReservedPort port;
  port.listen();
  const auto outcomes = run_processes(1, [&](int) {
    const auto message =
        failure([&] { Communicator::join(place_of(0, 2, port), at::kCPU, kLongTimeout); });
    EXPECT_THAT(message, AllOf(HasSubstr("cannot join"), HasSubstr("EADDRINUSE"),
                               HasSubstr(std::to_string(port.number()))));
  });
  EXPECT_THAT(outcomes, ElementsAre("passed"));
}

// A write to a peer that is gone would end the process, but it happens only now and then.
TEST(Communicator, WritesToPeersWithoutSigpipe) {
  const auto outcomes = in_group({at::kCPU, 2}, [](const Communicator&, at::Device) {
    const auto main_thread = std::to_string(::getpid());
    int others = 0;
    for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
      std::ifstream status(thread.path() / "status");
      std::string name, value;
      while (status >> name && name != "SigBlk:") {
      }
      status >> value;
      const bool blocked = (std::stoull(value, nullptr, 16) >> (SIGPIPE - 1) & 1) != 0;
      const bool other = thread.path().filename() != main_thread;
      EXPECT_EQ(blocked, other) << thread.path();
      others += other ? 1 : 0;
    }
    EXPECT_GT(others, 0);
  });
  EXPECT_THAT(outcomes, Each("passed"));
}

// The others mostly notice at once; where Gloo has missed it, and over NCCL, by the silence.
TEST_P(GroupOf, SaysThatAPeerDied) {
  const int repeats = kind().device == at::kCPU ? 5 : 1;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto outcomes = in_group(kind(), [&](const Communicator& group, at::Device device) {
      const std::vector<at::Tensor> tensors = {at::ones({20000}, device)};
      if (group.rank() == 1) ::ualarm(100000, 0);  // in the midst of its sums
      const auto message = failure([&] {
        while (true) group.sum(tensors);
      });
      EXPECT_THAT(message,
                  HasSubstr(fmt::format("process group of {}, rank {}", size(), group.rank())));
      EXPECT_THAT(message, HasSubstr("cannot sum: "));
      EXPECT_THAT(message, Not(HasSubstr(".cc:")));  // where in Gloo's sources it was noticed
    });
    std::vector<std::string> expected(static_cast<std::size_t>(size()), "passed");
    expected[1] = fmt::format("killed by signal {}", SIGALRM);
    EXPECT_EQ(outcomes, expected);
  }
}

TEST_P(GroupOf, DoesNotWaitForeverForASilentPeer) {
  const TemporaryFolder folder;
  const auto outcomes = in_group(
      kind(),
      [&](const Communicator& group, at::Device) {
        if (group.rank() == 1) return wait_for(folder.path() / "noticed");
        EXPECT_THAT(failure([&] { group.barrier(); }),
                    HasSubstr(fmt::format("process group of {}, rank {}", size(), group.rank())));
        folder.write("noticed", "");
      },
      enough_to_join());
  EXPECT_THAT(outcomes, Each("passed"));
}

}  // namespace
}  // namespace indexcache
