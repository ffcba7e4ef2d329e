#include "cli/options.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "indexcache/base/error.h"
#include "indexcache/search/pattern_file.h"

namespace indexcache::cli {

void ModelArguments::add_to(CLI::App& app) {
  app.add_option("model", folder, "Hugging Face folder: config.json, *.safetensors, tokenizer.json")
      ->required();
  app.add_option("--device", device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--dtype", dtype, "compute in fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  app.add_option("--latent-norm-eps", latent_norm_eps,
                 "epsilon of q_a_layernorm and kv_a_layernorm (default: rms_norm_eps; "
                 "1e-6 compares a GLM folder with transformers)");
  app.add_option("--threads", threads, "CPU threads (default: all cores)")
      ->check(CLI::PositiveNumber);
}

Checkpoint ModelArguments::open() const {
  if (threads > 0) at::set_num_threads(threads);
  auto checkpoint = Checkpoint::open(folder);
  print_notices(checkpoint);
  return checkpoint;
}

Model ModelArguments::load(const Checkpoint& checkpoint,
                           std::vector<std::int64_t> index_topk) const {
  return Model::load(checkpoint, {.device = parse_device(device),
                                  .dtype = dtype == "bf16" ? at::kBFloat16 : at::kFloat,
                                  .latent_norm_eps = latent_norm_eps,
                                  .index_topk = std::move(index_topk)});
}

void TextArguments::add_to(CLI::App& app) {
  app.add_option("--text", file, "UTF-8 text, or .jsonl / .jsonl.xz with a \"text\" a line")
      ->required();
  app.add_option("--context", sequences.context, "tokens a sequence")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--sequences", sequences.num_sequences, "sequences")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", sequences.seed, "draws the sequences")->capture_default_str();
  app.add_option("--tasks", sequences.retrieval_share,
                 "share of the sequences that is generated retrieval")
      ->check(between(0, 1))
      ->capture_default_str();
}

std::vector<Sequence> TextArguments::read(const Tokenizer& tokenizer) const {
  return make_sequences(read_documents(file), tokenizer, sequences);
}

namespace {

// FILE or FILE:KEEP, if there is such a file or the name says that it should be one.
std::optional<Pattern> pattern_of_file(const std::string& text, int num_layers) {
  const auto names_file = [](const std::string& name) {
    std::error_code error;
    return name.ends_with(".json") || std::filesystem::is_regular_file(name, error);
  };
  if (names_file(text)) return read_pattern_file(text, std::nullopt, num_layers);
  const auto colon = text.rfind(':');
  if (colon == std::string::npos || !names_file(text.substr(0, colon))) return std::nullopt;
  return read_pattern_file(text.substr(0, colon), text.substr(colon + 1), num_layers);
}

}  // namespace

void print_notices(const Checkpoint& checkpoint) {
  for (const auto& notice : checkpoint.notices()) {
    fmt::print(stderr, "indexcache: notice: {}\n", notice);
  }
}

at::Device parse_device(const std::string& name) {
  if (name == "cuda" && !at::hasCUDA()) {
    throw expectation_error("--device", "a machine and a build with CUDA", "none");
  }
  return at::Device(name == "cuda" ? at::kCUDA : at::kCPU);
}

Pattern resolve_pattern(const std::string& text, const ModelConfig& config) {
  if (text == "model") return config.schedule;
  const auto pattern = pattern_of_file(text, config.num_layers);
  return pattern ? *pattern : Pattern::parse(text, config.num_layers);
}

Pattern resolve_pattern(const std::string& text, const Model& model) {
  auto pattern = resolve_pattern(text, model.config());
  model.check_pattern(pattern);
  return pattern;
}

Tokenizer read_tokenizer(const std::filesystem::path& folder, const ModelConfig& config) {
  const auto path = folder / "tokenizer.json";
  auto tokenizer = Tokenizer::from_file(path);
  if (tokenizer.vocab_size() > config.vocab_size) {
    throw expectation_error(path.string(),
                            fmt::format("at most the model's {} tokens", config.vocab_size),
                            fmt::format("{}", tokenizer.vocab_size()));
  }
  return tokenizer;
}

CLI::Validator between(double low, double high) {
  const auto description = fmt::format("FLOAT in [{} - {}]", low, high);
  return CLI::Validator(
      [=](std::string& text) {
        double value = 0;
        const bool within = CLI::detail::lexical_cast(text, value) && value >= low && value <= high;
        return within ? std::string() : fmt::format("{} is no {}", text, description);
      },
      description);
}

}  // namespace indexcache::cli
