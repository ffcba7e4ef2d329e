// c10d's header of its Gloo backend is empty without this, and includes Gloo's headers, which the
// wheel lacks: Debian's libgloo-dev has them. Gloo itself is inside libtorch_cpu. What passes
// between the two here are pointers to its classes, never their insides, so that the versions need
// not be the same.
#define USE_C10D_GLOO
#include "indexcache/distributed/communicator.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <c10/util/Logging.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <exception>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/distributed/peer_watch.h"
#ifdef INDEXCACHE_CUDA
#include "indexcache/distributed/nccl_backend.h"
#endif

namespace indexcache {
namespace {

using Milliseconds = std::chrono::milliseconds;

// The first line of what c10d or Gloo says, as printable text. Stack traces may follow it; Gloo's
// begins with a place in its sources, "[.../pair.cc:547] ".
std::string one_line(std::string_view text) {
  std::string line(text.substr(0, text.find('\n')));
  const auto end = line.find("] ");
  if (line.starts_with('[') && end < line.size()) line.erase(0, end + 2);
  for (auto& c : line) {
    if (c < ' ' || c > '~') c = '?';
  }
  return line;
}

// c10d logs to stderr what it then throws, several times and with stack traces, and that the group
// has not been said goodbye to. While this lives it does not, unless the user has asked libtorch for
// more than its default (TORCH_CPP_LOG_LEVEL).
class QuietLog {
 public:
  QuietLog() : level_(FLAGS_caffe2_log_level) {
    if (level_ >= c10::GLOG_WARNING) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  }
  ~QuietLog() { FLAGS_caffe2_log_level = level_; }
  QuietLog(const QuietLog&) = delete;
  QuietLog& operator=(const QuietLog&) = delete;

 private:
  int level_;
};

// Gloo writes to peers that may be gone. That must be an error, not SIGPIPE, which ends the process:
// while this lives the signal is blocked for this thread, and for good in the threads that start
// meanwhile, which are Gloo's.
class BlockedSigpipe {
 public:
  BlockedSigpipe() {
    ::sigemptyset(&sigpipe_);
    ::sigaddset(&sigpipe_, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &sigpipe_, &before_);
  }
  ~BlockedSigpipe() {
    if (::sigismember(&before_, SIGPIPE) == 1) return;
    const timespec now{};
    while (::sigtimedwait(&sigpipe_, nullptr, &now) > 0) {  // one that came
    }
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  BlockedSigpipe(const BlockedSigpipe&) = delete;
  BlockedSigpipe& operator=(const BlockedSigpipe&) = delete;

 private:
  sigset_t sigpipe_, before_;
};

// Runs `call`; whatever it throws becomes a DeviceError: "process group of 2, rank 0, meeting at
// "localhost" port 29500: cannot join: ...".
template <typename Call>
auto reporting(const GroupPlace& place, std::string_view failure, const Call& call) {
  const auto error = [&](std::string_view reason) {
    return device_error("process group of {}, rank {}, meeting at {} port {}: {}: {}", place.size,
                        place.rank, quote(place.address), place.port, failure, one_line(reason));
  };
  const BlockedSigpipe blocked;
  try {
    return call();
  } catch (const c10::Error& thrown) {
    throw error(thrown.what_without_backtrace());
  } catch (const std::exception& thrown) {
    throw error(thrown.what());
  }
}

void check_place(const GroupPlace& place) {
  if (place.size < 1) {
    throw expectation_error("process group: size", "1 or more", std::to_string(place.size));
  }
  if (place.rank < 0 || place.rank >= place.size) {
    throw expectation_error("process group: rank", fmt::format("one in [0, {})", place.size),
                            std::to_string(place.rank));
  }
  if (place.size == 1) return;
  if (place.address.empty()) {
    throw expectation_error("process group: address", "a host name or an address", "none");
  }
  if (place.port < 1 || place.port > 65535) {
    throw expectation_error("process group: port", "one in [1, 65535]", std::to_string(place.port));
  }
}

// Where the processes find each other.
c10::intrusive_ptr<c10d::Store> meet(const GroupPlace& place, Milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(place.port);
  options.isServer = place.meeting == Meeting::kAtFirst && place.rank == 0;
  options.numWorkers = static_cast<std::size_t>(place.size);  // the server waits for all to come
  options.timeout = timeout;
  return c10::make_intrusive<c10d::PrefixStore>(
      fmt::format("attempt/{}", place.attempt),
      c10::make_intrusive<c10d::TCPStore>(place.address, options));
}

c10::intrusive_ptr<c10d::Backend> make_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                               const GroupPlace& place, at::Device device,
                                               Milliseconds timeout) {
#ifdef INDEXCACHE_CUDA
  if (device.is_cuda()) return make_nccl_backend(store, place.rank, place.size, timeout);
#else
  INDEXCACHE_ASSERT(device.is_cpu());  // join() has checked
#endif
  return c10::make_intrusive<c10d::ProcessGroupGloo>(
      store, place.rank, place.size, c10d::ProcessGroupGloo::Options::create_default(timeout));
}

// All tensors of one dtype.
struct Bucket {
  at::ScalarType dtype;
  std::vector<at::Tensor> tensors;
};

}  // namespace

struct Communicator::Group {
  GroupPlace place;
  at::Device device;
  Milliseconds timeout;
  QuietLog quiet = {};                              // until the rest of the group is gone
  c10::intrusive_ptr<c10d::Store> store = nullptr;  // NCCL meets in it again
  std::unique_ptr<PeerWatch> watch = nullptr;
  c10::intrusive_ptr<c10d::Backend> backend = nullptr;
  bool broken = false;  // an operation has failed

  // NCCL wants its end to be said, and warns otherwise. After an error it must not wait for peers
  // that may be gone.
  ~Group() {
    if (backend == nullptr) return;
    try {
      if (broken || std::uncaught_exceptions() > 0) {
        backend->abort();
      } else {
        backend->shutdown();
      }
    } catch (const std::exception&) {
      // All sums are there already; what is left of the group ends with the process.
    }
  }

  // reporting(), for an operation among the peers.
  template <typename Call>
  void together(std::string_view failure, const Call& call) {
    broken = true;
    reporting(place, failure, call);
    broken = false;
  }

  void sum(at::Tensor tensor, std::string_view failure) {
    std::vector<at::Tensor> one = {std::move(tensor)};
    together(failure, [&] { watch->wait(*backend->allreduce(one), timeout); });
  }

  // No process has a sum before every process has come.
  void barrier(std::string_view failure) {
    sum(at::ones({1}, at::TensorOptions().dtype(at::kLong).device(device)), failure);
  }
};

Communicator::Communicator() = default;
Communicator::~Communicator() = default;
Communicator::Communicator(Communicator&& other) noexcept = default;
Communicator& Communicator::operator=(Communicator&& other) noexcept = default;
Communicator::Communicator(std::unique_ptr<Group> group) : group_(std::move(group)) {}

Communicator Communicator::join(const GroupPlace& place, at::Device device,
                                std::chrono::seconds timeout) {
  check_place(place);
#ifdef INDEXCACHE_CUDA
  constexpr auto kDevices = "cpu or cuda";
  const bool known = device.is_cpu() || device.is_cuda();
#else
  constexpr auto kDevices = "cpu (this build is without CUDA)";
  const bool known = device.is_cpu();
#endif
  if (!known) throw expectation_error("process group: device", kDevices, device.str());
  if (place.size == 1) return Communicator();

  std::unique_ptr<Group> group(new Group{place, device, timeout});
  constexpr auto kFailure = "cannot join";
  reporting(place, kFailure, [&] {
    group->store = meet(place, timeout);
    group->watch = std::make_unique<PeerWatch>(group->store, place.rank, place.size);
    group->backend = make_backend(group->store, place, device, timeout);
  });
  // The first process must not leave, and take the meeting place with it, before the others have
  // found each other. With NCCL it is the first operation that connects.
  group->barrier(kFailure);
  group->watch->all_have_come();
  return Communicator(std::move(group));
}

int Communicator::rank() const { return group_ ? group_->place.rank : 0; }
int Communicator::size() const { return group_ ? group_->place.size : 1; }

void Communicator::sum(std::span<const at::Tensor> tensors) const {
  std::vector<Bucket> buckets = {{at::kFloat, {}}, {at::kDouble, {}}, {at::kLong, {}}};
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& tensor = tensors[i];
    const auto bucket = std::find_if(buckets.begin(), buckets.end(), [&](const Bucket& candidate) {
      return candidate.dtype == tensor.scalar_type();
    });
    if (bucket == buckets.end()) {
      throw expectation_error(fmt::format("Communicator::sum: tensor {}", i), "fp32, fp64 or int64",
                              at::toString(tensor.scalar_type()));
    }
    if (group_ && tensor.device().type() != group_->device.type()) {
      throw expectation_error(fmt::format("Communicator::sum: tensor {}", i),
                              "one on device " + group_->device.str(), tensor.device().str());
    }
    if (tensor.numel() > 0) bucket->tensors.push_back(tensor);
  }
  if (!group_) return;

  constexpr auto kFailure = "cannot sum";
  const at::NoGradGuard no_grad;
  for (const auto& bucket : buckets) {
    if (bucket.tensors.empty()) continue;
    if (bucket.tensors.size() == 1 && bucket.tensors[0].is_contiguous()) {
      group_->sum(bucket.tensors[0], kFailure);
      continue;
    }
    std::vector<at::Tensor> flat;
    for (const auto& tensor : bucket.tensors) flat.push_back(tensor.reshape(-1));
    const auto all = at::cat(flat);
    group_->sum(all, kFailure);
    std::int64_t begin = 0;
    for (const auto& tensor : bucket.tensors) {
      tensor.copy_(all.narrow(0, begin, tensor.numel()).view(tensor.sizes()));
      begin += tensor.numel();
    }
  }
}

double Communicator::from_first(double value) const {
  if (!group_) return value;
  std::vector<at::Tensor> one = {
      at::full({1}, value, at::TensorOptions().dtype(at::kDouble).device(group_->device))};
  group_->together("cannot take the first process's value", [&] {
    group_->watch->wait(*group_->backend->broadcast(one), group_->timeout);
    value = one[0].item<double>();
  });
  return value;
}

void Communicator::barrier() const {
  if (group_) group_->barrier("cannot pass a barrier");
}

}  // namespace indexcache
