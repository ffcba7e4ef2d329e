// indexcache overlap: how much the index sets of different layers have in common.
#include "indexcache/calibrate/overlap.h"

#include <fmt/format.h>

#include <memory>
#include <optional>

#include "cli/options.h"
#include "cli/verbs.h"
#include "indexcache/base/file.h"
#include "indexcache/base/progress.h"

namespace indexcache::cli {
namespace {

struct OverlapArguments {
  ModelArguments model;
  TextArguments text;
  std::filesystem::path json, picture;
};

void overlap(const OverlapArguments& arguments) {
  if (!arguments.json.empty()) check_writable(arguments.json);
  if (!arguments.picture.empty()) check_writable(arguments.picture);
  const Checkpoint checkpoint = arguments.model.open();
  const auto sequences =
      arguments.text.read(read_tokenizer(arguments.model.folder, checkpoint.config()));
  const Model model = arguments.model.load(checkpoint);
  OverlapMatrix matrix;
  {
    std::optional<Progress> progress;
    matrix = measure_overlap(model, sequences, [&](int done) {
      // From the first sequence on, so that a refusal is one line alone.
      if (!progress) {
        progress.emplace("overlap", "sequences", static_cast<std::int64_t>(sequences.size()), done);
      }
      progress->update(done);
    });
  }
  if (!arguments.json.empty()) {
    write_file_atomically(arguments.json, to_json(matrix).dump() + "\n");
  }
  if (!arguments.picture.empty()) write_file_atomically(arguments.picture, to_svg(matrix));

  fmt::print("overlap |T(i) n T(j)| / k, k = {}, over {} queries\n", matrix.top_k,
             matrix.num_queries);
  fmt::print("{:>8}  {:>6}  {:>6}  {:>6}\n", "distance", "mean", "lowest", "highest");
  for (std::size_t distance = 1; distance < matrix.layers.size(); distance *= 2) {
    const auto summary = matrix.at_distance(distance);
    fmt::print("{:>8}  {:>6.3f}  {:>6.3f}  {:>6.3f}\n", distance, summary.mean, summary.lowest,
               summary.highest);
  }
}

}  // namespace

void add_overlap(CLI::App& app) {
  auto arguments = std::make_shared<OverlapArguments>();
  auto* verb = app.add_subcommand(
      "overlap", "Measure how much the index sets of different layers have in common");
  arguments->model.add_to(*verb);
  arguments->text.add_to(*verb);
  verb->add_option("--json", arguments->json, "write the matrix to this file");
  verb->add_option("--picture", arguments->picture, "write a heat map (SVG) to this file");
  verb->callback([arguments] { overlap(*arguments); });
}

}  // namespace indexcache::cli
