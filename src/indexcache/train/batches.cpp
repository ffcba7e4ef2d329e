#include "indexcache/train/batches.h"

#include <algorithm>
#include <numeric>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"

namespace indexcache {
namespace {

std::mt19937_64 generator_at(std::uint64_t seed, const BatchPlace& place, std::uint64_t what,
                             std::uint64_t index) {
  const std::uint64_t words[] = {seed, static_cast<std::uint64_t>(place.stage),
                                 static_cast<std::uint64_t>(place.phase), what, index};
  std::uint64_t state = 0;
  for (const auto word : words) {  // splitmix64 over the words
    state += word + 0x9e3779b97f4a7c15;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9;
    state = (state ^ (state >> 27)) * 0x94d049bb133111eb;
    state ^= state >> 31;
  }
  return std::mt19937_64(state);
}

int num_chains(int num_keys) { return std::max(1, num_keys / 2); }  // a chain has several lines

constexpr std::uint64_t kOrder = 0, kSequence = 1;  // what a generator draws

}  // namespace

BatchRows rows_of(std::int64_t sequences, int rank, int num_processes) {
  const auto even = sequences / num_processes, more = sequences % num_processes;
  return {.first = rank * even + std::min<std::int64_t>(rank, more),
          .count = even + (rank < more ? 1 : 0)};
}

BatchSource::BatchSource(const RunConfig& config, const Tokenizer& tokenizer,
                         const TokenStream& stream)
    : config_(&config), stream_(&stream), generator_(tokenizer) {
  std::int64_t longest = 0;
  for (const auto& stage : config.stages) {
    for (const auto& phase : stage.phases) longest = std::max(longest, phase.context);
  }
  const auto tokens = static_cast<std::int64_t>(stream.tokens.size());
  if (tokens < longest + 1) {
    throw expectation_error("text", fmt::format("at least {} tokens, one window", longest + 1),
                            fmt::format("{}", tokens));
  }
  if (tokenizer.vocab_size() > config.model.vocab_size) {
    throw expectation_error("tokenizer",
                            fmt::format("at most the model's {} tokens", config.model.vocab_size),
                            fmt::format("{}", tokenizer.vocab_size()));
  }
  if (config.data.retrieval_share > 0) {
    for (const auto& stage : config.stages) {
      for (const auto& phase : stage.phases) check_retrieval(phase.context);
    }
  }
}

// The largest prompt of each task that the config asks for: it must not fail hours into a run.
void BatchSource::check_retrieval(std::int64_t context) const {
  const auto& data = config_->data;
  const auto keys = *std::max_element(data.keys.begin(), data.keys.end());
  std::vector<RetrievalOptions> largest;
  if (data.single_needle_share + data.variable_tracking_share < 1) {
    largest.push_back({.task = RetrievalTask::kMultiNeedle, .num_keys = keys, .context = context});
  }
  if (data.single_needle_share > 0) {
    largest.push_back({.task = RetrievalTask::kSingleNeedle, .context = context});
  }
  if (data.variable_tracking_share > 0) {
    largest.push_back({.task = RetrievalTask::kVariableTracking,
                       .num_keys = num_chains(keys),
                       .context = context});
  }
  auto random = generator_at(config_->seed, {}, kSequence, 0);
  for (const auto& options : largest) {
    const auto filler = std::span(stream_->tokens).first(static_cast<std::size_t>(context) + 1);
    generator_.make(filler, options, random);
  }
}

std::span<const std::int32_t> BatchSource::window(const BatchPlace& place, std::int64_t index,
                                                  std::int64_t length) const {
  const auto tokens = static_cast<std::int64_t>(stream_->tokens.size());
  const auto stride = length - 1;  // the last token of a window is a target alone
  const auto count = std::max<std::int64_t>(1, (tokens - length) / stride);
  auto random =
      generator_at(config_->seed, place, kOrder, static_cast<std::uint64_t>(index / count));
  const auto slack = tokens - (count * stride + 1);
  const auto offset =
      static_cast<std::int64_t>(draw_below(random, static_cast<std::uint64_t>(slack) + 1));
  const auto first =
      static_cast<std::int64_t>(draw_below(random, static_cast<std::uint64_t>(count)));
  // i -> first + i * step modulo count visits every window once, as step and count share no factor.
  auto step = 1 + static_cast<std::int64_t>(draw_below(random, static_cast<std::uint64_t>(count)));
  while (std::gcd(step, count) != 1) ++step;
  const auto drawn = (first + (index % count) * step) % count;
  return std::span(stream_->tokens)
      .subspan(static_cast<std::size_t>(offset + drawn * stride), static_cast<std::size_t>(length));
}

RetrievalPrompt BatchSource::retrieval(std::span<const std::int32_t> filler, std::int64_t context,
                                       std::mt19937_64& random) const {
  const auto& data = config_->data;
  RetrievalOptions options;
  options.context = context;
  options.num_keys = data.keys[draw_below(random, data.keys.size())];
  const double drawn = draw_unit(random);
  if (drawn < data.single_needle_share) {
    options.task = RetrievalTask::kSingleNeedle;
  } else if (drawn < data.single_needle_share + data.variable_tracking_share) {
    options.task = RetrievalTask::kVariableTracking;
    options.num_keys = num_chains(options.num_keys);
  }
  return generator_.make(filler, options, random);
}

HostBatch BatchSource::make(const BatchPlace& place) const {
  const auto& phase = config_->stages[static_cast<std::size_t>(place.stage)]
                          .phases[static_cast<std::size_t>(place.phase)];
  const auto size = static_cast<std::size_t>(phase.sequences * phase.context);
  HostBatch batch{.inputs = std::vector<std::int64_t>(size),
                  .targets = std::vector<std::int64_t>(size),
                  .weights = std::vector<float>(size, 1.0f),
                  .answers = std::vector<std::uint8_t>(size, 0)};
  for (std::int64_t row = 0; row < phase.sequences; ++row) {
    const auto index = place.step * phase.sequences + row;
    auto random = generator_at(config_->seed, place, kSequence, static_cast<std::uint64_t>(index));
    const auto text = window(place, index, phase.context + 1);
    const auto first = static_cast<std::size_t>(row * phase.context);
    std::vector<std::int32_t> tokens(text.begin(), text.end());
    if (draw_unit(random) < config_->data.retrieval_share) {
      auto prompt = retrieval(text, phase.context, random);
      for (const auto position : prompt.answer_positions()) {
        batch.answers[first + static_cast<std::size_t>(position)] = 1;
        batch.weights[first + static_cast<std::size_t>(position)] =
            static_cast<float>(config_->data.answer_weight);
      }
      tokens = std::move(prompt.tokens);
    }
    std::copy(tokens.begin(), tokens.end() - 1, batch.inputs.begin() + static_cast<long>(first));
    std::copy(tokens.begin() + 1, tokens.end(), batch.targets.begin() + static_cast<long>(first));
  }
  double sum = 0;
  for (const float weight : batch.weights) sum += static_cast<double>(weight);
  for (float& weight : batch.weights) weight = static_cast<float>(weight / sum);
  return batch;
}

}  // namespace indexcache
