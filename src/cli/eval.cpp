// indexcache eval MODEL --text FILE --pattern P [--pattern Q ...]
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "cli/options.h"
#include "cli/provenance.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/base/progress.h"
#include "indexcache/eval/report.h"

namespace indexcache::cli {
namespace {

struct EvalArguments {
  ModelArguments model;
  std::filesystem::path text, json;
  std::vector<std::string> patterns;
  std::int64_t context = 4096;
  std::string windows = "first";
  std::int64_t max_windows = 0;  // 0: all of them
  std::vector<std::int64_t> task_contexts;
  std::vector<std::string> tasks;  // none: all
  std::vector<std::int64_t> index_topk;
  int prompts = 50, keys = 4;
  std::uint64_t seed = 1;
};

void warn_beyond_trained_context(const EvalArguments& arguments, const Model& model) {
  std::int64_t longest = arguments.context;
  for (const auto context : arguments.task_contexts) longest = std::max(longest, context);
  if (longest > model.config().max_position_embeddings) {
    fmt::print(stderr, "indexcache: notice: {} tokens are more than the model's context of {}\n",
               longest, model.config().max_position_embeddings);
  }
}

std::vector<RetrievalTask> chosen_tasks(const EvalArguments& arguments) {
  if (arguments.tasks.empty()) return all_retrieval_tasks();
  std::vector<RetrievalTask> tasks;
  for (const auto& name : arguments.tasks) tasks.push_back(parse_retrieval_task(name));
  return tasks;
}

EvalInputs make_inputs(const EvalArguments& arguments, const Tokenizer& tokenizer) {
  const auto documents = read_documents(arguments.text);
  EvalInputs inputs;
  inputs.context = arguments.context;
  inputs.windows = make_text_windows(
      documents, tokenizer, arguments.context,
      arguments.windows == "first" ? WindowChoice::kFirstOfDocument : WindowChoice::kAll);
  if (arguments.max_windows > 0) {
    inputs.windows = draw_text_windows(
        std::move(inputs.windows), static_cast<std::size_t>(arguments.max_windows), arguments.seed);
  }
  if (arguments.prompts > 0) {
    inputs.tasks = make_task_sets(tokenize(documents, tokenizer).tokens, tokenizer,
                                  {.tasks = chosen_tasks(arguments),
                                   .contexts = arguments.task_contexts,
                                   .num_prompts = arguments.prompts,
                                   .num_keys = arguments.keys,
                                   .seed = arguments.seed});
  }
  return inputs;
}

void run(EvalArguments arguments) {
  if (!arguments.json.empty()) check_writable(arguments.json);
  chosen_tasks(arguments);  // a name that is none is refused before work
  if (arguments.task_contexts.empty()) arguments.task_contexts = {arguments.context};
  const Checkpoint checkpoint = arguments.model.open();
  const Tokenizer tokenizer = read_tokenizer(arguments.model.folder, checkpoint.config());
  const Model model = arguments.model.load(checkpoint, std::move(arguments.index_topk));

  std::vector<std::string> names = {"baseline"};
  std::vector<Pattern> patterns = {model.baseline()};
  for (const auto& text : arguments.patterns) {
    names.push_back(text);
    patterns.push_back(resolve_pattern(text, model));
  }
  warn_beyond_trained_context(arguments, model);
  if (arguments.prompts > 0) {  // what does not fit is said before the text is read
    for (const auto context : arguments.task_contexts) model.make_cache(patterns[0], context);
  }

  const EvalInputs inputs = make_inputs(arguments, tokenizer);
  std::vector<PatternScores> scores;
  {
    std::optional<Progress> progress;
    scores = evaluate(model, patterns, inputs, [&](std::int64_t done, std::int64_t total) {
      if (!progress) progress.emplace("eval", "tokens", total);
      progress->update(done);
    });
  }
  std::vector<NamedScores> named;
  for (std::size_t i = 0; i < scores.size(); ++i) named.push_back({names[i], std::move(scores[i])});
  fmt::print("{}", eval_table(inputs, named));
  if (!arguments.json.empty()) {
    nlohmann::json json = eval_json(inputs, named);
    json["text"]["file"] = arguments.text.string();
    json["seed"] = arguments.seed;
    json["model"] = arguments.model.folder.string();
    json["device"] = arguments.model.device;
    json["dtype"] = arguments.model.dtype;
    json["provenance"] = provenance(model.options().device);
    write_file_atomically(arguments.json, json.dump(2) + "\n");
  }
}

}  // namespace

void add_eval(CLI::App& app) {
  auto* verb = app.add_subcommand(
      "eval",
      "Measure bits per byte, loss by position and retrieval: patterns against the baseline");
  auto arguments = std::make_shared<EvalArguments>();
  arguments->model.add_to(*verb);
  verb->add_option("--text", arguments->text,
                   "UTF-8 text, or .jsonl / .jsonl.xz with a \"text\" a line")
      ->required();
  verb->add_option("--pattern", arguments->patterns,
                   "model, full, FSSF..., a source list, uniform:1/n, freq:n[:offset] or a pattern "
                   "FILE[:KEEP]; may be repeated");
  verb->add_option("--context", arguments->context, "tokens a window")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--windows", arguments->windows, "the first window of each document, or all")
      ->check(CLI::IsMember({"first", "all"}))
      ->capture_default_str();
  verb->add_option("--max-windows", arguments->max_windows,
                   "take this many of the windows, drawn by the seed (default: all)")
      ->check(CLI::PositiveNumber);
  verb->add_option("--tasks-lengths", arguments->task_contexts,
                   "tokens a retrieval prompt, separated by commas (default: the context)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  verb->add_option("--tasks", arguments->tasks,
                   "retrieval tasks, separated by commas: single_needle, multi_needle, "
                   "variable_tracking (default: all)")
      ->delimiter(',');
  verb->add_option("--index-topk", arguments->index_topk,
                   "k of each layer's own index set, separated by commas (default: the model's)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  verb->add_option("--prompts", arguments->prompts, "retrieval prompts a task and length; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--keys", arguments->keys, "needles of the multi-key task")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--seed", arguments->seed, "draws windows and prompts")->capture_default_str();
  verb->add_option("--json", arguments->json, "write the figures to this file");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace indexcache::cli
