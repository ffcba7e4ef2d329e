#include "indexcache/calibrate/overlap.h"

#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>

#include "indexcache/calibrate/sequences.h"
#include "indexcache/ops/index_overlap/index_overlap.h"

namespace indexcache {
namespace {

// Adds up intersection sizes, chunk by chunk.
class OverlapSum {
 public:
  OverlapSum(std::vector<int> layers, std::int64_t top_k)
      : layers_(std::move(layers)),
        top_k_(top_k),
        sets_(layers_.size()),
        sums_(layers_.size(), std::vector<std::int64_t>(layers_.size(), 0)) {}

  void add(int layer, const at::Tensor& index_set) {
    const auto row = std::ranges::lower_bound(layers_, layer) - layers_.begin();
    sets_[row] = index_set;
    if (layer == layers_.back()) add_chunk();
  }

  OverlapMatrix matrix() const {
    OverlapMatrix matrix;
    matrix.top_k = top_k_;
    matrix.num_queries = num_queries_;
    matrix.layers = layers_;
    for (const auto& row : sums_) {
      std::vector<double> shares;
      for (const std::int64_t sum : row) {
        shares.push_back(static_cast<double>(sum) / static_cast<double>(num_queries_ * top_k_));
      }
      matrix.overlap.push_back(std::move(shares));
    }
    return matrix;
  }

 private:
  void add_chunk() {
    // Full rows have no padding; all layers have the same ones, the last of the chunk.
    const auto full_rows = (sets_[0].select(1, top_k_ - 1).ge(0)).sum().item<std::int64_t>();
    if (full_rows == 0) return;
    const auto first = sets_[0].size(0) - full_rows;
    for (auto& set : sets_) set = set.narrow(0, first, full_rows).cpu();
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      for (std::size_t j = i; j < sets_.size(); ++j) {
        const auto sum = index_overlap(sets_[i], sets_[j]).sum().item<std::int64_t>();
        sums_[i][j] += sum;
        if (i != j) sums_[j][i] += sum;
      }
    }
    num_queries_ += full_rows;
  }

  std::vector<int> layers_;
  std::int64_t top_k_;
  std::vector<at::Tensor> sets_;
  std::vector<std::vector<std::int64_t>> sums_;
  std::int64_t num_queries_ = 0;
};

// Dark blue over green to yellow (viridis, five stops), for a share in [0, 1].
std::string colour(double share) {
  static constexpr int kStops[5][3] = {
      {68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}};
  const double place = std::clamp(share, 0.0, 1.0) * 4;
  const int stop = std::min(static_cast<int>(place), 3);
  int rgb[3];
  for (int i = 0; i < 3; ++i) {
    rgb[i] = static_cast<int>(kStops[stop][i] +
                              (place - stop) * (kStops[stop + 1][i] - kStops[stop][i]) + 0.5);
  }
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

}  // namespace

OverlapMatrix::Summary OverlapMatrix::at_distance(std::size_t distance) const {
  Summary summary;
  std::vector<double> values;
  for (std::size_t i = 0; i + distance < overlap.size(); ++i) {
    values.push_back(overlap[i][i + distance]);
  }
  if (values.empty()) return summary;
  for (const double value : values) summary.mean += value / static_cast<double>(values.size());
  summary.lowest = *std::ranges::min_element(values);
  summary.highest = *std::ranges::max_element(values);
  return summary;
}

OverlapMatrix measure_overlap(const Model& model, const std::vector<Sequence>& sequences,
                              const std::function<void(int)>& on_sequence) {
  const auto top_k = model.config().index_topk;
  check_some_query_selects(sequences, top_k, "overlap");
  const Pattern pattern = model.baseline();
  OverlapSum sum(pattern.full_layers(), top_k);
  int done = 0;
  for (const Sequence& sequence : sequences) {
    const std::vector<std::int64_t> ids(sequence.tokens.begin(), sequence.tokens.end() - 1);
    auto cache = model.make_cache(pattern, static_cast<std::int64_t>(ids.size()));
    model.forward(at::tensor(ids, at::kLong), cache, kIndexSetChunk,
                  [&](const IndexStep& step) { sum.add(step.layer, step.index_set); });
    if (on_sequence) on_sequence(++done);
  }
  return sum.matrix();
}

nlohmann::ordered_json to_json(const OverlapMatrix& matrix) {
  return {{"top_k", matrix.top_k},
          {"queries", matrix.num_queries},
          {"layers", matrix.layers},
          {"overlap", matrix.overlap}};
}

std::string to_svg(const OverlapMatrix& matrix) {
  constexpr int kMargin = 60, kScale = 70;
  const int n = static_cast<int>(matrix.layers.size());
  const int cell = std::clamp(640 / n, 6, 36);
  const int side = n * cell, label_step = (n + 23) / 24;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
      "viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{2}\" y=\"24\" font-size=\"15\">Overlap of index sets, k = {3}, {4} "
      "queries</text>\n",
      side + kMargin + kScale, side + 2 * kMargin, kMargin, matrix.top_k, matrix.num_queries);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      svg += fmt::format(
          "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\">"
          "<title>layers {} and {}: {:.3f}</title></rect>\n",
          kMargin + j * cell, kMargin + i * cell, cell, cell, colour(matrix.overlap[i][j]),
          matrix.layers[i], matrix.layers[j], matrix.overlap[i][j]);
    }
    if (i % label_step != 0) continue;
    const int middle = kMargin + i * cell + cell / 2 + 4;
    svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", kMargin - 6,
                       middle, matrix.layers[i]);
    svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", middle - 4,
                       kMargin + side + 16, matrix.layers[i]);
  }
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">layer</text>\n",
                     kMargin + side / 2, kMargin + side + 36);
  const int x = kMargin + side + 16;
  for (int i = 0; i < 50; ++i) {
    svg +=
        fmt::format("<rect x=\"{}\" y=\"{:.2f}\" width=\"14\" height=\"{:.2f}\" fill=\"{}\"/>\n", x,
                    kMargin + side * (49 - i) / 50.0, side / 50.0 + 0.5, colour((i + 0.5) / 50));
  }
  for (const double mark : {0.0, 0.5, 1.0}) {
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\">{}</text>\n", x + 18,
                       kMargin + side * (1 - mark) + 4, mark);
  }
  return svg + "</svg>\n";
}

}  // namespace indexcache
