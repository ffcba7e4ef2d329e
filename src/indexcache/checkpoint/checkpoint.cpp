#include "indexcache/checkpoint/checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <set>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/number_formats.h"
#include "indexcache/checkpoint/shards.h"
#include "indexcache/checkpoint/stored_values.h"
#include "indexcache/checkpoint/strict_json.h"

namespace indexcache {

struct Checkpoint::State {
  std::filesystem::path folder;
  ModelConfig config;
  Shards shards;
  std::vector<std::string> notices;
  std::vector<bool> has_indexer;
  std::vector<ExpertLayout> expert_layouts;

  QuantizationConfig quantization() const {
    return config.quantization.value_or(QuantizationConfig());
  }
};

namespace {

using TensorMap = std::map<std::string, TensorView, std::less<>>;

std::string where(const TensorView& view, std::string_view name) {
  return fmt::format("{}: tensor {}", view.file, name);
}

void check_shape(const TensorView& view, std::string_view name,
                 std::span<const std::int64_t> shape) {
  if (!std::equal(view.shape.begin(), view.shape.end(), shape.begin(), shape.end())) {
    throw expectation_error(where(view, name), fmt::format("shape {}", shape_text(shape)),
                            shape_text(view.shape));
  }
}

// The scales that go with a stored weight, after checking A2: FP8 if and only if there are scales.
const TensorView* find_scale(const TensorMap& tensors, const TensorView& view,
                             std::string_view name) {
  if (!is_weight_dtype(view.dtype)) {
    throw expectation_error(where(view, name), "F32, F16, BF16 or F8_E4M3",
                            std::string(dtype_name(view.dtype)));
  }
  const auto scale = tensors.find(fmt::format("{}{}", name, kScaleSuffix));
  const bool scaled = scale != tensors.end();
  if (scaled != (view.dtype == DType::kF8E4M3)) {
    throw expectation_error(
        where(view, name),
        scaled ? "F8_E4M3, as it has scales" : fmt::format("scales {}{}", name, kScaleSuffix),
        scaled ? std::string(dtype_name(view.dtype)) : "none beside F8_E4M3");
  }
  return scaled ? &scale->second : nullptr;
}

// Checks a folder's tensors against what its config asks for.
class Inspector {
 public:
  Inspector(const std::filesystem::path& folder, const ModelConfig& config,
            const TensorMap& tensors)
      : folder_(folder), config_(config), tensors_(tensors) {}

  void require_all(const std::vector<TensorSpec>& specs) {
    for (const auto& spec : specs) require(spec);
  }

  ExpertLayout require_experts(int layer) {
    const auto fused = expert_tensors(config_, layer, ExpertLayout::kFused);
    const auto layout = !fused.empty() && tensors_.contains(fused[0].name)
                            ? ExpertLayout::kFused
                            : ExpertLayout::kPerExpert;
    require_all(expert_tensors(config_, layer, layout));
    return layout;
  }

  // Whether the layer has a usable indexer; a Full layer must.
  bool check_indexer(int layer) {
    const auto specs = indexer_tensors(config_, layer);
    std::vector<std::string> missing;
    bool right_shapes = true;
    for (const auto& spec : specs) {
      const auto found = tensors_.find(spec.name);
      if (found == tensors_.end()) {
        missing.push_back(spec.name);
      } else {
        right_shapes = right_shapes && found->second.shape == spec.shape;
      }
    }
    if (!config_.schedule.is_full(layer)) {
      for (const auto& spec : specs) mark(spec.name);
      if (missing.size() < specs.size()) unused_indexers_.push_back(layer);
      if (missing.empty() && right_shapes) require_all(specs);
      return missing.empty() && right_shapes;
    }
    if (!missing.empty()) {
      throw expectation_error(fmt::format("{}: layer {} is Full", folder_.string(), layer),
                              "its indexer's tensors",
                              fmt::format("no {}", fmt::join(missing, ", ")));
    }
    require_all(specs);
    return true;
  }

  // What is stored beyond what the config asks for.
  std::vector<std::string> take_notices() {
    if (!unused_indexers_.empty()) {
      notices_.push_back(
          fmt::format("Shared layers {} hold indexer tensors, which the schedule leaves unused",
                      fmt::join(unused_indexers_, ", ")));
    }
    std::map<int, int> mtp_tensors;
    std::vector<std::string> unknown;
    for (const auto& [name, view] : tensors_) {
      if (used_.contains(name)) continue;
      const auto tensor = parse_layer_tensor(name);
      if (tensor && tensor->layer >= config_.num_layers) {
        ++mtp_tensors[tensor->layer];
      } else {
        unknown.push_back(name);
      }
    }
    for (const auto& [layer, count] : mtp_tensors) {
      check_mtp(layer);
      notices_.push_back(fmt::format(
          "layer {} is for multi-token prediction: its {} tensors are skipped", layer, count));
    }
    if (!unknown.empty()) {
      notices_.push_back(fmt::format("{} tensors of no known use are ignored, the first is {}",
                                     unknown.size(), quote(unknown[0])));
    }
    return std::move(notices_);
  }

 private:
  void mark(const std::string& name) {
    used_.insert(name);
    used_.insert(fmt::format("{}{}", name, kScaleSuffix));
  }

  void require(const TensorSpec& spec) {
    const auto found = tensors_.find(spec.name);
    if (found == tensors_.end()) {
      throw expectation_error(folder_.string(),
                              fmt::format("tensor {} {}", spec.name, shape_text(spec.shape)),
                              "none of that name");
    }
    check_shape(found->second, spec.name, spec.shape);
    if (const auto* scale = find_scale(tensors_, found->second, spec.name)) {
      read_block_scales(found->second, *scale, config_.quantization.value_or(QuantizationConfig()),
                        spec.name);
    }
    mark(spec.name);
  }

  // A layer past the last one must be one of the config's MTP layers, or at least look like one:
  // else num_hidden_layers is wrong and the model would run cut short without a word.
  void check_mtp(int layer) const {
    const bool declared = layer < config_.num_layers + config_.num_mtp_layers;
    if (!declared && !tensors_.contains(layer_tensor(layer, "eh_proj.weight"))) {
      throw expectation_error(
          folder_.string(),
          fmt::format("tensors of num_hidden_layers {} and num_nextn_predict_layers {}",
                      config_.num_layers, config_.num_mtp_layers),
          fmt::format("tensors of a layer {}", layer));
    }
  }

  const std::filesystem::path& folder_;
  const ModelConfig& config_;
  const TensorMap& tensors_;
  std::set<std::string, std::less<>> used_;
  std::vector<int> unused_indexers_;
  std::vector<std::string> notices_;
};

}  // namespace

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  auto state = std::make_unique<State>();
  state->folder = folder;
  state->config = read_config(folder);
  state->shards = open_shards(folder);

  Inspector inspector(folder, state->config, state->shards.tensors);
  inspector.require_all(outer_tensors(state->config));
  for (int layer = 0; layer < state->config.num_layers; ++layer) {
    inspector.require_all(layer_tensors(state->config, layer));
    state->has_indexer.push_back(inspector.check_indexer(layer));
    state->expert_layouts.push_back(inspector.require_experts(layer));
  }
  state->notices = inspector.take_notices();
  state->notices.insert(state->notices.end(), state->shards.notices.begin(),
                        state->shards.notices.end());
  return Checkpoint(std::move(state));
}

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const std::filesystem::path& Checkpoint::folder() const { return state_->folder; }
const ModelConfig& Checkpoint::config() const { return state_->config; }
const std::vector<std::string>& Checkpoint::notices() const { return state_->notices; }

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, view] : state_->shards.tensors) names.push_back(name);
  return names;
}

bool Checkpoint::has(std::string_view name) const {
  return state_->shards.tensors.find(name) != state_->shards.tensors.end();
}

const TensorView& Checkpoint::view(std::string_view name) const {
  const auto found = state_->shards.tensors.find(name);
  if (found == state_->shards.tensors.end()) {
    throw expectation_error(state_->folder.string(), fmt::format("tensor {}", name), "none");
  }
  return found->second;
}

bool Checkpoint::has_indexer(int layer) const { return state_->has_indexer.at(layer); }

ExpertLayout Checkpoint::expert_layout(int layer) const { return state_->expert_layouts.at(layer); }

void Checkpoint::read(std::string_view name, std::span<const std::int64_t> shape,
                      std::span<float> out) const {
  const auto& tensor = view(name);
  check_shape(tensor, name, shape);
  INDEXCACHE_ASSERT(static_cast<std::int64_t>(out.size()) == tensor.num_elements());
  const auto* scale = find_scale(state_->shards.tensors, tensor, name);
  if (scale == nullptr) return decode_values(tensor, nullptr, 0, out);
  const auto scales = read_block_scales(tensor, *scale, state_->quantization(), std::string(name));
  decode_values(tensor, &scales, 0, out);
}

void Checkpoint::read_bf16(std::string_view name, std::span<const std::int64_t> shape,
                           std::span<std::uint16_t> out) const {
  const auto& tensor = view(name);
  check_shape(tensor, name, shape);
  INDEXCACHE_ASSERT(static_cast<std::int64_t>(out.size()) == tensor.num_elements());
  const auto* scale = find_scale(state_->shards.tensors, tensor, name);
  if (tensor.dtype == DType::kBF16) {
    if (!out.empty()) std::memcpy(out.data(), tensor.bytes.data(), out.size_bytes());
    return;
  }
  std::optional<BlockScales> scales;
  if (scale != nullptr) {
    scales = read_block_scales(tensor, *scale, state_->quantization(), std::string(name));
  }
  std::array<float, 4096> values;
  for (std::size_t done = 0; done < out.size(); done += values.size()) {
    const auto part = std::span(values).first(std::min(values.size(), out.size() - done));
    decode_values(tensor, scales ? &*scales : nullptr, static_cast<std::int64_t>(done), part);
    std::transform(part.begin(), part.end(), out.begin() + static_cast<std::ptrdiff_t>(done),
                   bf16_from_float);
  }
}

}  // namespace indexcache
