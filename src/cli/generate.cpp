// indexcache generate MODEL --prompt TEXT | --prompt-file FILE
#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "cli/options.h"
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
};

std::vector<std::int32_t> read_prompt(const GenerateArguments& arguments,
                                      const Tokenizer& tokenizer) {
  const bool from_file = !arguments.prompt_file.empty();
  const std::string where = from_file ? arguments.prompt_file.string() : "--prompt";
  const std::string text = from_file ? read_file(arguments.prompt_file) : arguments.prompt;
  if (text.empty()) throw expectation_error(where, "text", "none");
  if (const auto offset = find_invalid_utf8(text)) {
    throw input_error("{}: expected UTF-8 text, found byte 0x{:02x} at byte offset {}", where,
                      static_cast<unsigned char>(text[*offset]), *offset);
  }
  return tokenizer.encode(text);
}

void write_now(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void run(GenerateArguments arguments) {
  const Checkpoint checkpoint = arguments.model.open();
  const Tokenizer tokenizer = read_tokenizer(arguments.model.folder, checkpoint.config());
  const auto prompt = read_prompt(arguments, tokenizer);
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
  const Generation generation =
      generate(session, prompt, arguments.options,
               [&](std::int32_t token) { write_now(stream.push(token)); });
  write_now(stream.finish() + "\n");
  fmt::print(
      stderr, "prompt: {} tokens, {:.1f} tokens/s; generated: {} tokens, {:.1f} tokens/s; {}\n",
      generation.prompt_tokens,
      static_cast<double>(generation.prompt_tokens) / generation.prefill_seconds,
      generation.tokens.size(),
      generation.decode_steps == 0
          ? 0.0
          : static_cast<double>(generation.decode_steps) / generation.decode_seconds,
      generation.reason == StopReason::kStopToken ? "ended by the model" : "ended by --max-tokens");
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* verb = app.add_subcommand("generate", "continue a prompt");
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
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--top-p", options.sampling.top_p, "only the likeliest tokens that reach this")
      ->capture_default_str();
  verb->add_option("--top-k", options.sampling.top_k,
                   "only this many of the likeliest tokens; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--seed", options.sampling.seed, "of the sampling")->capture_default_str();
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace indexcache::cli
