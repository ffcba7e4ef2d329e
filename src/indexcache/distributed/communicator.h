// The processes of one data-parallel run: sums over all of them, and what the first one says.
//
// Every process of a group makes the same calls in the same order, with tensors of the same shapes
// and dtypes; each call returns when its result is there. Gloo carries the data on a CPU, NCCL on
// CUDA devices. For a given size of the group and given tensors the result is deterministic and the
// same bits in every process.
//
// A peer that dies, or keeps the others waiting for longer than the timeout, is a DeviceError in
// every process that waits for it: for a death at once or within half a minute. So is whatever else
// goes wrong between them. After one the group is broken: all that is left is to end the process. A
// Communicator is used by one thread at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace indexcache {

// Who listens where the processes meet.
enum class Meeting {
  kAtFirst,     // the process of rank 0
  kAtLauncher,  // what started the processes: a c10d TCPStore that is there already
};

// One process's place in its group.
struct GroupPlace {
  int rank = 0;         // in [0, size)
  int size = 1;         // processes in the group
  int local_rank = 0;   // among the processes of its machine
  std::string address;  // where they meet: a host name or an address, and
  int port = 0;         // a port in [1, 65535]
  Meeting meeting = Meeting::kAtFirst;
  // How often a launcher has started the group anew: its store holds the words of the groups before.
  int attempt = 0;
};

class Communicator {
 public:
  // Alone: rank 0 of 1, without a network; the operations change nothing.
  Communicator();
  // Returns when all processes have joined. `timeout` bounds each wait for peers, here and in the
  // operations. A group of 1 is alone. `device` is where the tensors of sum() are; each process on
  // one machine has its own CUDA device. Throws InputError for a place that cannot be and for CUDA
  // in a build without it, DeviceError if the group does not come together: a peer is missing, the
  // port is in use.
  static Communicator join(const GroupPlace& place, at::Device device,
                           std::chrono::seconds timeout);
  ~Communicator();
  Communicator(Communicator&& other) noexcept;
  Communicator& operator=(Communicator&& other) noexcept;

  int rank() const;
  int size() const;

  // tensors[i] = the sum over all processes of their tensors[i], in place. fp32, fp64 and int64 (in
  // which a sum wraps around), any shape, also empty or strided; no two may share memory. All
  // tensors of a dtype travel as one, in a copy unless there is only one and it is contiguous: so a
  // call with many small tensors costs one collective a dtype. Autograd does not see it. Throws
  // InputError for another dtype or another device than the group's.
  void sum(std::span<const at::Tensor> tensors) const;

  // The first process's value, to the bit.
  double from_first(double value) const;

  // Returns when every process has called it.
  void barrier() const;

 private:
  struct Group;
  explicit Communicator(std::unique_ptr<Group> group);

  std::unique_ptr<Group> group_;  // null: alone
};

}  // namespace indexcache
