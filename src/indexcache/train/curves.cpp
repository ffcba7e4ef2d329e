#include "indexcache/train/curves.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include <cmath>
#include <fstream>
#include <string>
#include <utility>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"

namespace indexcache {
namespace {

void accumulate(at::Tensor& sum, const at::Tensor& value) {
  if (sum.defined()) {
    sum.add_(value);
  } else {
    sum = value.clone();
  }
}

std::vector<double> to_host(const at::Tensor& tensor) {
  const auto host = tensor.to(at::kCPU, at::kDouble).flatten().contiguous();
  const auto* data = host.const_data_ptr<double>();
  return {data, data + host.numel()};
}

}  // namespace

void StepSums::add(const TrainingForward& forward, const TrainingBatch& batch,
                   const at::Tensor& norm) {
  const at::NoGradGuard no_grad;
  ++steps_;
  accumulate(objective_, forward.loss.detach());
  accumulate(norm_, norm);
  if (forward.token_losses.defined()) {
    const auto answers = batch.answers.flatten().to(forward.token_losses.scalar_type());
    const auto answer_loss = (forward.token_losses * answers).sum();
    accumulate(answer_loss_, answer_loss);
    accumulate(loss_, forward.token_losses.sum() - answer_loss);
    accumulate(answers_, answers.sum());
    accumulate(tokens_, (1 - answers).sum());
  }
  if (!forward.kl.empty()) accumulate(kl_, at::stack(forward.kl) * batch.share);
  std::vector<at::Tensor> loads;
  for (const auto& load : forward.expert_loads) {
    if (load.defined()) loads.push_back(load);
  }
  if (!loads.empty()) accumulate(load_, at::stack(loads));
}

void StepSums::gather(const Communicator& group) {
  std::vector<at::Tensor> parts;
  for (const auto& sum : {objective_, loss_, tokens_, answer_loss_, answers_, kl_}) {
    if (sum.defined()) parts.push_back(sum);
  }
  group.sum(parts);
}

nlohmann::json StepSums::take(bool& finite) {
  // One copy to the host for all of them.
  const auto steps = static_cast<double>(steps_);
  nlohmann::json record;
  const auto objective = to_host(at::stack({objective_, norm_.to(objective_.scalar_type())}));
  finite = std::isfinite(objective[0]) && std::isfinite(objective[1]);
  record["grad_norm"] = objective[1] / steps;
  if (loss_.defined()) {
    const auto sums = to_host(at::stack({loss_, tokens_, answer_loss_, answers_}));
    record["loss"] = sums[0] / sums[1];
    if (sums[3] > 0) record["answer_loss"] = sums[2] / sums[3];
  }
  if (kl_.defined()) record["kl"] = to_host(kl_ / steps);
  if (load_.defined()) {
    for (const auto& layer : load_.to(at::kDouble).unbind()) {
      record["expert_load"].push_back(to_host(layer / layer.sum()));
    }
  }
  *this = StepSums();
  return record;
}

CurveFile::CurveFile(std::filesystem::path path, std::int64_t step) : path_(std::move(path)) {
  std::string kept;
  if (std::ifstream file(path_); file) {
    for (std::string line; std::getline(file, line);) {
      // A record that a kill cut in half is beyond the checkpoint too.
      const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (record.is_object() && record.value("step", step + 1) <= step) kept += line + "\n";
    }
  }
  write_file_atomically(path_, kept);
}

void CurveFile::append(const nlohmann::json& record) {
  std::ofstream file(path_, std::ios::app);
  file << record.dump() << '\n' << std::flush;
  if (!file) throw device_error("{}: cannot be written", path_.string());
}

}  // namespace indexcache
