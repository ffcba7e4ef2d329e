// Time and memory of the index losses of one Full layer with four readers, forward and gradient,
// at growing contexts: L_multi and L_avg of train/indexer_attention beside the plain autograd
// version, the definition written with whole [T, T] matrices. The pass of L_multi holds more than a
// loss: it computes the readers' attention in the same walk, which the other two leave out.
//
//   index_loss_bench [--device cpu|cuda] [--contexts 8192,...] [--plain-limit 8192] [--rounds 3]
//                    [--threads N] [--clock wall|cpu] [--json FILE]
//
// The CPU clock is for machines that others use too, with one thread. Rounds follow a pass of their
// own that warms up; with --rounds 0 that pass is timed, for contexts where one takes minutes.
// Memory is what the pass holds at its peak beyond its inputs: on a GPU as the allocator counts it,
// on a CPU the growth of the resident set of a process of its own.
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <limits>
#include <sstream>

#include "harness.h"
#include "indexcache/base/machine.h"
#include "indexcache/train/indexer_attention.h"

namespace indexcache {
namespace {

// The bundled model's shape.
constexpr std::int64_t kHeads = 4, kDim = 128, kValueDim = 64, kIndexHeads = 8, kIndexDim = 128;
constexpr std::size_t kReaders = 4;
constexpr double kScale = 0.088;

enum class Form { kMulti, kAverage, kPlain };
constexpr const char* kNames[] = {"multi", "average", "plain"};

struct Inputs {
  std::vector<MlaExpanded> readers;
  IndexerProjected indexer;
};

Inputs make_inputs(std::int64_t tokens, at::Device device) {
  at::manual_seed(1);
  const auto options =
      at::TensorOptions().device(device).dtype(device.is_cuda() ? at::kBFloat16 : at::kFloat);
  const auto random = [&](at::IntArrayRef shape) { return at::randn(shape, options); };
  Inputs inputs;
  for (std::size_t i = 0; i < kReaders; ++i) {
    inputs.readers.push_back({.q = random({1, tokens, kHeads, kDim}),
                              .k = random({1, tokens, kHeads, kDim}),
                              .v = random({1, tokens, kHeads, kValueDim})});
  }
  inputs.indexer = {.q = random({1, tokens, kIndexHeads, kIndexDim}),
                    .keys = random({1, tokens, kIndexDim}),
                    .weights = random({1, tokens, kIndexHeads}).to(at::kFloat) * 0.01};
  for (auto x : {inputs.indexer.q, inputs.indexer.keys, inputs.indexer.weights}) {
    x.requires_grad_(true);
  }
  return inputs;
}

at::Tensor plain_loss(const Inputs& inputs) {
  const auto tokens = inputs.indexer.q.size(1);
  const auto later =
      at::ones({tokens, tokens}, inputs.indexer.q.options().dtype(at::kBool).requires_grad(false))
          .triu(1);
  const auto hide = [&](const at::Tensor& x) {
    return x.masked_fill(later, -std::numeric_limits<double>::infinity());
  };
  at::Tensor mass;
  for (const auto& reader : inputs.readers) {
    const auto logits = at::einsum("bthd,bshd->bhts", {reader.q, reader.k});
    const auto p = at::softmax(hide(logits.to(at::kFloat) * kScale), -1).mean(1) / 4.0;
    mass = mass.defined() ? mass + p : p;
  }
  const auto& indexer = inputs.indexer;
  const auto products = at::einsum("bthd,bsd->bths", {indexer.q, indexer.keys}).relu();
  const auto scores = at::einsum("bth,bths->bts", {indexer.weights, products.to(at::kFloat)});
  const auto log_q = at::log_softmax(hide(scores), -1).masked_fill(later, 0);
  return (at::xlogy(mass, mass) - mass * log_q).sum(-1).mean();
}

at::Tensor loss_of(const Inputs& inputs, Form form, std::int64_t chunk) {
  switch (form) {
    case Form::kMulti: {
      at::Tensor sum;
      for (const auto& reader : inputs.readers) {
        const auto kl = indexer_attention(reader, kScale, inputs.indexer, {}, chunk).kl;
        sum = sum.defined() ? sum + kl : kl;
      }
      return sum / static_cast<double>(kReaders);
    }
    case Form::kAverage:
      return averaged_index_kl(inputs.readers, kScale, inputs.indexer, {}, chunk);
    case Form::kPlain:
      return plain_loss(inputs);
  }
  std::abort();
}

void synchronise(at::Device device) {
  if (device.is_cuda()) at::accelerator::synchronizeDevice(0);
}

std::int64_t resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

nlohmann::ordered_json measure(Form form, std::int64_t tokens, at::Device device, int rounds,
                               clockid_t clock) {
  const auto chunk = attention_chunk_elements(device);
  const auto inputs = make_inputs(tokens, device);
  const auto pass = [&] {
    const auto loss = loss_of(inputs, form, chunk);
    loss.backward();
    synchronise(device);
    return loss.item<double>();
  };
  at::matmul(at::ones({64, 64}), at::ones({64, 64}));  // what libtorch allocates once
  synchronise(device);
  if (device.is_cuda()) at::accelerator::resetPeakStats(0);
  const auto held = device.is_cuda() ? at::accelerator::getDeviceStats(0).allocated_bytes[0].current
                                     : resident_bytes();
  const double first = bench::seconds_of(clock);
  const double loss = pass();
  std::vector<double> seconds = {bench::seconds_of(clock) - first};
  const auto peak = device.is_cuda() ? at::accelerator::getDeviceStats(0).allocated_bytes[0].peak
                                     : resident_bytes();
  if (rounds > 0) seconds.clear();
  for (int round = 0; round < rounds; ++round) {
    const double begin = bench::seconds_of(clock);
    pass();
    seconds.push_back(bench::seconds_of(clock) - begin);
  }
  const auto timing = bench::summarise(seconds);
  return {{"form", kNames[static_cast<int>(form)]},
          {"context", tokens},
          {"loss", loss},
          {"seconds", timing.median},
          {"seconds_quartiles", {timing.low_quartile, timing.high_quartile}},
          {"peak_bytes", peak - held}};
}

// On a CPU the peak of the resident set is a process's own: measured in a child.
nlohmann::ordered_json measure_apart(Form form, std::int64_t tokens, at::Device device, int rounds,
                                     int threads, clockid_t clock) {
  if (device.is_cuda()) return measure(form, tokens, device, rounds, clock);
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  const auto child = fork();  // before the parent has used a thread of libtorch's
  if (child == 0) {
    if (threads > 0) at::set_num_threads(threads);
    const auto text = measure(form, tokens, device, rounds, clock).dump();
    if (write(ends[1], text.data(), text.size()) < 0) std::abort();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(got));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (text.empty()) {
    return {{"form", kNames[static_cast<int>(form)]}, {"context", tokens}, {"failed", status}};
  }
  return nlohmann::ordered_json::parse(text);
}

int run(int argc, char** argv) {
  std::string device = "cpu", json, contexts = "8192,16384,32768,65536";
  std::int64_t plain_limit = 8192;
  int rounds = 3, threads = 0;
  clockid_t clock = CLOCK_MONOTONIC;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--device") device = value;
    if (option == "--contexts") contexts = value;
    if (option == "--plain-limit") plain_limit = std::stoll(value);
    if (option == "--rounds") rounds = std::stoi(value);
    if (option == "--threads") threads = std::stoi(value);
    if (option == "--clock" && value == "cpu") clock = CLOCK_PROCESS_CPUTIME_ID;
    if (option == "--json") json = value;
  }
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  std::istringstream list(contexts);
  for (std::string each; std::getline(list, each, ',');) {
    for (const auto form : {Form::kMulti, Form::kAverage, Form::kPlain}) {
      const auto tokens = std::stoll(each);
      if (form == Form::kPlain && tokens > plain_limit) continue;
      const auto result = measure_apart(form, tokens, at::Device(device), rounds, threads, clock);
      fmt::print("{}\n", result.dump());
      std::fflush(stdout);
      cases.push_back(result);
    }
  }
  if (json.empty()) return 0;
  const nlohmann::ordered_json report = {
      {"bench", "index_loss"},
      {"device", device == "cpu" ? cpu_name() : device},
      {"threads", threads > 0 ? threads : at::get_num_threads()},
      {"clock", clock == CLOCK_MONOTONIC ? "wall" : "cpu"},
      {"commit", INDEXCACHE_COMMIT},
      {"command", fmt::format("{}", fmt::join(argv, argv + argc, " "))},
      {"readers", kReaders},
      {"heads", kHeads},
      {"index_heads", kIndexHeads},
      {"rounds", rounds},
      {"cases", cases}};
  std::ofstream(json) << report.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace indexcache

int main(int argc, char** argv) { return indexcache::run(argc, argv); }
