// indexcache bench MODEL [--pattern P ...] [--contexts 2048,...]
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cli/options.h"
#include "cli/provenance.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/base/progress.h"
#include "indexcache/base/random.h"
#include "indexcache/eval/speed.h"

namespace indexcache::cli {
namespace {

struct BenchArguments {
  ModelArguments model;
  std::vector<std::string> patterns;
  std::filesystem::path text, json;
  SpeedOptions options{.contexts = {2048, 4096, 8192, 16384, 32768}};
};

// The text's tokens, or ids drawn from the vocabulary.
std::vector<std::int32_t> tokens_to_run(const BenchArguments& arguments, const Model& model) {
  if (!arguments.text.empty()) {
    return tokenize(read_documents(arguments.text),
                    read_tokenizer(arguments.model.folder, model.config()))
        .tokens;
  }
  std::mt19937_64 random(1);
  std::vector<std::int32_t> tokens(65536);
  for (auto& token : tokens) {
    token = static_cast<std::int32_t>(
        draw_below(random, static_cast<std::uint64_t>(model.config().vocab_size)));
  }
  return tokens;
}

void run(BenchArguments arguments) {
  if (!arguments.json.empty()) check_writable(arguments.json);
  auto& contexts = arguments.options.contexts;
  std::sort(contexts.begin(), contexts.end());
  contexts.erase(std::unique(contexts.begin(), contexts.end()), contexts.end());
  const Checkpoint checkpoint = arguments.model.open();
  const Model model = arguments.model.load(checkpoint);
  std::vector<NamedPattern> patterns = {{"baseline", model.baseline()}};
  for (const auto& text : arguments.patterns) {
    patterns.push_back({text, resolve_pattern(text, model)});
  }
  if (contexts.back() > model.config().max_position_embeddings) {
    fmt::print(stderr,
               "indexcache: notice: {} tokens are more than the model's context of {}: good for "
               "speed and memory only\n",
               contexts.back(), model.config().max_position_embeddings);
  }
  const auto tokens = tokens_to_run(arguments, model);
  std::vector<PatternSpeed> speeds;
  {
    std::optional<Progress> progress;
    speeds = measure_speed(model, patterns, tokens, arguments.options,
                           [&](std::int64_t done, std::int64_t total) {
                             if (!progress) progress.emplace("bench", "tokens", total);
                             progress->update(done);
                           });
  }
  fmt::print("{}", speed_table(speeds));
  if (!arguments.json.empty()) {
    nlohmann::json json = {{"model", arguments.model.folder.string()},
                           {"device", arguments.model.device},
                           {"dtype", arguments.model.dtype},
                           {"text", arguments.text.string()},
                           {"decode_tokens", arguments.options.decode_tokens},
                           {"chunk", arguments.options.chunk},
                           {"patterns", speed_json(speeds)},
                           {"provenance", provenance(model.options().device)}};
    write_file_atomically(arguments.json, json.dump(2) + "\n");
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* verb = app.add_subcommand(
      "bench",
      "Time prefill and decode and count the caches' memory: patterns in turn with the baseline");
  auto arguments = std::make_shared<BenchArguments>();
  arguments->model.add_to(*verb);
  verb->add_option("--pattern", arguments->patterns,
                   "measured beside the baseline, as for eval; may be repeated");
  auto& options = arguments->options;
  const CLI::Range tokens(std::int64_t{1}, std::int64_t{1} << 40);
  verb->add_option("--contexts", options.contexts, "tokens, separated by commas")
      ->delimiter(',')
      ->check(tokens)
      ->capture_default_str();
  verb->add_option("--decode-tokens", options.decode_tokens, "tokens decoded at each context")
      ->check(tokens)
      ->capture_default_str();
  verb->add_option("--repeats", options.repeats, "runs of each pattern")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--chunk", options.chunk, "tokens a prefill step")
      ->check(tokens)
      ->capture_default_str();
  verb->add_option("--text", arguments->text, "run this text (default: tokens drawn at random)");
  verb->add_option("--json", arguments->json, "write the figures to this file");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace indexcache::cli
