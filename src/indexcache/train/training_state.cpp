#include "indexcache/train/training_state.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/safetensors.h"

namespace indexcache {
namespace {

constexpr const char* kPosition = "run.json";  // a tensor of bytes, so that one rename replaces all

nlohmann::json describe(const TrainingState& state) {
  const auto& at = state.position;
  return {{"config", state.config}, {"text", state.text},          {"stage", at.stage},
          {"phase", at.phase},      {"phase_step", at.phase_step}, {"phase_used", at.phase_used},
          {"step", at.step},        {"tokens", at.tokens},         {"seconds", at.seconds}};
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

}  // namespace

void save_training_state(const std::filesystem::path& file, const TrainingState& state) {
  const auto text = describe(state).dump();
  std::vector<SafetensorsWriter::Entry> entries;
  entries.push_back({kPosition, DType::kU8, {static_cast<std::int64_t>(text.size())}});
  for (const auto& [name, tensor] : state.tensors) {
    INDEXCACHE_ASSERT(tensor.scalar_type() == at::kFloat);
    entries.push_back({name, DType::kF32, tensor.sizes().vec()});
  }
  SafetensorsWriter writer(file, std::move(entries));
  writer.write(std::as_bytes(std::span(text)));
  for (const auto& [name, tensor] : state.tensors)
    writer.write(bytes_of(tensor.cpu().contiguous()));
  writer.commit();
}

TrainingState load_training_state(const std::filesystem::path& file) {
  const MappedFile mapped(file);
  const auto views = parse_safetensors(mapped.bytes(), file.string());
  const auto found = views.find(kPosition);
  if (found == views.end() || found->second.dtype != DType::kU8) {
    throw expectation_error(file.string(), "a checkpoint of `indexcache train`", "other tensors");
  }
  const auto& bytes = found->second.bytes;
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  TrainingState state;
  try {
    const auto json = nlohmann::json::parse(text, text + bytes.size());
    state.config = json.at("config");
    json.at("text").get_to(state.text);
    auto& at = state.position;
    json.at("stage").get_to(at.stage);
    json.at("phase").get_to(at.phase);
    json.at("phase_step").get_to(at.phase_step);
    json.at("phase_used").get_to(at.phase_used);
    json.at("step").get_to(at.step);
    json.at("tokens").get_to(at.tokens);
    json.at("seconds").get_to(at.seconds);
  } catch (const nlohmann::json::exception& error) {
    throw expectation_error(file.string() + ": " + kPosition, "where the run stands", error.what());
  }
  for (const auto& [name, view] : views) {
    if (name == kPosition) continue;
    if (view.dtype != DType::kF32) {
      throw expectation_error(file.string() + ": " + name, "F32", dtype_name(view.dtype));
    }
    auto tensor = at::empty(view.shape);
    std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
    state.tensors.emplace(name, std::move(tensor));
  }
  return state;
}

}  // namespace indexcache
