// indexcache generate MODEL --prompt TEXT | --prompt-file FILE
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "cli/provenance.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/engine/session.h"

namespace indexcache::cli {
namespace {

struct GenerateArguments {
  ModelArguments model;
  std::string prompt;
  std::filesystem::path prompt_file;
  std::string pattern = "model";
  GenerateOptions options;
  bool json = false;
};

std::string read_prompt(const GenerateArguments& arguments) {
  const bool from_file = !arguments.prompt_file.empty();
  const std::string where = from_file ? arguments.prompt_file.string() : "--prompt";
  const std::string text = from_file ? read_file(arguments.prompt_file) : arguments.prompt;
  if (text.empty()) throw expectation_error(where, "text", "none");
  if (const auto offset = find_invalid_utf8(text)) {
    throw input_error("{}: expected UTF-8 text, found byte 0x{:02x} at byte offset {}", where,
                      static_cast<unsigned char>(text[*offset]), *offset);
  }
  return text;
}

void write_now(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

double per_second(std::int64_t count, double seconds) {
  return count == 0 ? 0.0 : static_cast<double>(count) / seconds;
}

// What --json prints. `text` is the decoded tokens: whole characters, as it is streamed otherwise.
nlohmann::json as_json(const GenerateArguments& arguments, const Pattern& pattern,
                       const std::string& prompt, const std::vector<std::int32_t>& prompt_tokens,
                       const std::string& text, const Generation& generation,
                       const at::Device& device) {
  return {
      {"model", arguments.model.folder.string()},
      {"pattern", pattern.str()},
      {"prompt", prompt},
      {"prompt_token_ids", prompt_tokens},
      {"text", text},
      {"token_ids", generation.tokens},
      {"ended_by", generation.reason == StopReason::kStopToken ? "model" : "max_tokens"},
      {"prefill_tokens_per_second",
       per_second(generation.prompt_tokens, generation.prefill_seconds)},
      {"decode_tokens_per_second", per_second(generation.decode_steps, generation.decode_seconds)},
      {"provenance", provenance(device)}};
}

void print_rates(const Generation& generation) {
  fmt::print(
      stderr, "prompt: {} tokens, {:.1f} tokens/s; generated: {} tokens, {:.1f} tokens/s; {}\n",
      generation.prompt_tokens, per_second(generation.prompt_tokens, generation.prefill_seconds),
      generation.tokens.size(), per_second(generation.decode_steps, generation.decode_seconds),
      generation.reason == StopReason::kStopToken ? "ended by the model" : "ended by --max-tokens");
}

void run(GenerateArguments arguments) {
  const Checkpoint checkpoint = arguments.model.open();
  const Tokenizer tokenizer = read_tokenizer(arguments.model.folder, checkpoint.config());
  const std::string text = read_prompt(arguments);
  const auto prompt = tokenizer.encode(text);
  const Model model = arguments.model.load(checkpoint);
  const Pattern pattern = resolve_pattern(arguments.pattern, model);
  for (const auto id : model.config().eos_token_ids) {
    arguments.options.stop_tokens.push_back(static_cast<std::int32_t>(id));
  }
  const auto capacity = static_cast<std::int64_t>(prompt.size()) + arguments.options.max_tokens;
  if (capacity > model.config().max_position_embeddings) {
    fmt::print(stderr, "indexcache: notice: up to {} tokens, more than the model's context of {}\n",
               capacity, model.config().max_position_embeddings);
  }
  Session session(model, pattern, capacity);
  Tokenizer::Stream stream(tokenizer);
  std::string written;
  const auto write = [&](const std::string& piece) {
    written += piece;
    if (!arguments.json) write_now(piece);
  };
  const Generation generation = generate(session, prompt, arguments.options,
                                         [&](std::int32_t token) { write(stream.push(token)); });
  write(stream.finish());
  if (arguments.json) {
    fmt::print("{}\n", as_json(arguments, pattern, text, prompt, written, generation,
                               model.options().device)
                           .dump(2));
  } else {
    write_now("\n");
    print_rates(generation);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* verb = app.add_subcommand("generate", "Continue a prompt");
  auto arguments = std::make_shared<GenerateArguments>();
  arguments->model.add_to(*verb);
  auto* source = verb->add_option_group("prompt");
  source->add_option("--prompt", arguments->prompt, "the text to continue");
  source->add_option("--prompt-file", arguments->prompt_file, "a file with the text to continue");
  source->require_option(1);
  verb->add_option("--pattern", arguments->pattern, "the sharing pattern, as for eval")
      ->capture_default_str();
  auto& options = arguments->options;
  verb->add_option("--max-tokens", options.max_tokens, "generate at most this many tokens")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40))
      ->capture_default_str();
  verb->add_option("--temperature", options.sampling.temperature, "0: always the likeliest token")
      ->capture_default_str();
  verb->add_option("--top-p", options.sampling.top_p, "only the likeliest tokens that reach this")
      ->capture_default_str();
  verb->add_option("--top-k", options.sampling.top_k,
                   "only this many of the likeliest tokens; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--seed", options.sampling.seed, "of the sampling")->capture_default_str();
  verb->add_flag("--json", arguments->json,
                 "for machines: the text, its tokens and the speed at the end");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace indexcache::cli
