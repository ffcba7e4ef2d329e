// indexcache trace: runs token ids and writes logits and index sets, to compare an engine or a port
// with this one.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "cli/options.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/base/machine.h"
#include "indexcache/checkpoint/safetensors.h"

namespace indexcache::cli {
namespace {

// A longer file holds more ids than any model's context.
constexpr std::uintmax_t kMaxIdFileBytes = std::uintmax_t{64} << 20;
constexpr std::size_t kShownCharacters = 40;
constexpr std::int64_t kChunk = 2048;  // tokens in flight at once

struct TraceArguments {
  ModelArguments model;
  std::filesystem::path ids, out;
  std::string pattern = "model";
  std::vector<int> index_inputs;  // Full layers
};

// A JSON value as an error shows it: one short line.
std::string shown(const nlohmann::json& value) {
  if (value.is_structured()) return value.is_array() ? "an array" : "an object";
  const auto text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return text.size() <= kShownCharacters ? text : text.substr(0, kShownCharacters) + "...";
}

// A flat JSON array of token ids below `vocab_size`: [T] int64, T >= 1.
at::Tensor read_token_ids(const std::filesystem::path& path, std::int64_t vocab_size) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const std::string expected = fmt::format("a JSON array of token ids in [0, {})", vocab_size);
  if (bytes.size() > kMaxIdFileBytes) {
    throw expectation_error(path.string(), fmt::format("at most {} bytes", kMaxIdFileBytes),
                            fmt::format("{}", bytes.size()));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    throw expectation_error(path.string(), expected,
                            fmt::format("invalid JSON at byte {}", error.byte));
  } catch (const nlohmann::json::exception&) {
    throw expectation_error(path.string(), expected, "a number beyond any range");
  }
  if (!json.is_array()) throw expectation_error(path.string(), expected, shown(json));
  if (json.empty()) throw expectation_error(path.string(), expected, "no ids");
  auto ids = at::empty({static_cast<std::int64_t>(json.size())}, at::kLong);
  auto* id = ids.data_ptr<std::int64_t>();
  for (std::size_t i = 0; i < json.size(); ++i) {
    const auto& value = json[i];
    if (!value.is_number_unsigned() ||
        value.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocab_size)) {
      throw expectation_error(fmt::format("{}: element {}", path.string(), i),
                              fmt::format("a token id in [0, {})", vocab_size), shown(value));
    }
    id[i] = value.get<std::int64_t>();
  }
  return ids;
}

// Throws before the work if the logits alone will not fit.
void check_logits_fit(std::int64_t num_tokens, std::int64_t vocab_size) {
  const auto needed = num_tokens * vocab_size * static_cast<std::int64_t>(sizeof(float));
  const auto available = available_memory_bytes();
  if (needed > available) {
    throw device_error("trace: logits of {} tokens need {} bytes, {} are free", num_tokens, needed,
                       available);
  }
}

struct Trace {
  at::Tensor logits;                           // [T, vocab] fp32
  std::map<std::string, at::Tensor> by_layer;  // index_set.i and others, in the file's dtypes
};

// Throws InputError for a layer whose indexer does not run.
void check_index_inputs(const std::vector<int>& layers, const Pattern& pattern) {
  for (const int layer : layers) {
    if (layer >= 0 && layer < pattern.num_layers() && pattern.is_full(layer)) continue;
    throw expectation_error(
        "--index-inputs",
        fmt::format("layers that are Full: {}", fmt::join(pattern.full_layers(), ", ")),
        fmt::format("{}", layer));
  }
}

Trace run(const Model& model, const Pattern& pattern, const at::Tensor& ids,
          const std::vector<int>& index_inputs) {
  auto cache = model.make_cache(pattern, ids.size(0));
  std::map<std::string, std::vector<at::Tensor>> chunks;
  const auto add = [&](const char* name, int layer, const at::Tensor& chunk) {
    chunks[fmt::format("{}.{}", name, layer)].push_back(chunk.cpu());
  };
  const auto hidden = model.forward(ids, cache, kChunk, [&](const IndexStep& step) {
    add("index_set", step.layer, step.index_set);
    if (std::ranges::find(index_inputs, step.layer) == index_inputs.end()) return;
    const auto inputs = model.index_inputs(step.layer, step.hidden, step.first_position);
    add("index_q", step.layer, inputs.q.to(at::kFloat));
    add("index_keys", step.layer, inputs.keys.to(at::kFloat));
    add("index_weights", step.layer, inputs.weights.to(at::kFloat));
  });
  Trace trace{.logits = model.logits(hidden).cpu().contiguous(), .by_layer = {}};
  for (const auto& [name, parts] : chunks) trace.by_layer[name] = at::cat(parts).contiguous();
  return trace;
}

// The first position whose logits are not finite ends the trace: those after it may have read it.
void check_finite(const at::Tensor& logits, const Pattern& pattern) {
  const auto wrong = at::isfinite(logits).all(1).logical_not().nonzero();
  if (wrong.numel() == 0) return;
  throw expectation_error(fmt::format("pattern {}: the logits at position {}", pattern.str(),
                                      wrong[0].item<std::int64_t>()),
                          "finite numbers",
                          "others (the weights are not finite, or the dtype overflows)");
}

void write(const std::filesystem::path& path, const Trace& trace,
           const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsWriter::Entry> entries;
  std::vector<at::Tensor> tensors;
  const auto add = [&](const std::string& name, DType dtype, const at::Tensor& tensor) {
    entries.push_back({.name = name, .dtype = dtype, .shape = tensor.sizes().vec()});
    tensors.push_back(tensor);
  };
  add("logits", DType::kF32, trace.logits);
  for (const auto& [name, tensor] : trace.by_layer) {
    add(name, tensor.scalar_type() == at::kInt ? DType::kI32 : DType::kF32, tensor);
  }
  SafetensorsWriter writer(path, entries, metadata);
  for (const auto& tensor : tensors) {
    writer.write({static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()});
  }
  writer.commit();
}

void trace(const TraceArguments& arguments) {
  check_writable(arguments.out);
  const auto checkpoint = arguments.model.open();
  const auto vocab_size = checkpoint.config().vocab_size;
  const auto ids = read_token_ids(arguments.ids, vocab_size);
  check_logits_fit(ids.size(0), vocab_size);
  const auto model = arguments.model.load(checkpoint);
  const auto pattern = resolve_pattern(arguments.pattern, model);
  check_index_inputs(arguments.index_inputs, pattern);
  const auto result = run(model, pattern, ids, arguments.index_inputs);
  check_finite(result.logits, pattern);
  write(arguments.out, result,
        {{"format", "pt"}, {"pattern", pattern.str()}, {"dtype", arguments.model.dtype}});
  fmt::print("{}: logits [{}, {}], index sets [{}, {}] of layers {}\n", arguments.out.string(),
             ids.size(0), vocab_size, ids.size(0), model.config().index_topk,
             fmt::join(pattern.full_layers(), ", "));
}

}  // namespace

void add_trace(CLI::App& app) {
  auto* verb = app.add_subcommand("trace", "Write the logits and index sets of token ids");
  auto arguments = std::make_shared<TraceArguments>();
  arguments->model.add_to(*verb);
  verb->add_option("--ids", arguments->ids, "JSON file: a flat array of token ids")->required();
  verb->add_option("--out", arguments->out,
                   "safetensors file to write: logits [T, vocab] fp32 and, per Full layer i, "
                   "index_set.i [T, k] int32, ascending, -1 padded")
      ->required();
  verb->add_option("--pattern", arguments->pattern,
                   "model, full, FSSF..., -1,0,..., uniform:1/n, freq:n[:offset] or FILE[:KEEP]")
      ->capture_default_str();
  verb->add_option("--index-inputs", arguments->index_inputs,
                   "for these Full layers write too what their indexers score with: index_q.i "
                   "[T, heads, dim], index_keys.i [T, dim], index_weights.i [T, heads], fp32")
      ->delimiter(',');
  verb->callback([arguments] { trace(*arguments); });
}

}  // namespace indexcache::cli
