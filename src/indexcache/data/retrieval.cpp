#include "indexcache/data/retrieval.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bitset>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"

namespace indexcache {
namespace {

constexpr int kMinValue = 100, kMaxValue = 999;
constexpr std::size_t kMinWords = 128, kMaxWords = 1500;  // one-token words: fewer are not enough
constexpr std::size_t kMinValues = 128;                   // one-token values likewise
// How far a line may move from where it was drawn to stand between lines or words of the text.
constexpr std::size_t kSnapTokens = 32;

// For tokenizers that have few words of their own.
constexpr const char* kPlainWords[] = {
    "anchor", "apple",   "arrow",  "autumn", "basket", "beach",  "bell",   "bird",   "boat",
    "bottle", "branch",  "bread",  "bridge", "bucket", "butter", "candle", "castle", "chain",
    "cherry", "clock",   "cloud",  "copper", "cotton", "desert", "dragon", "eagle",  "engine",
    "farmer", "feather", "field",  "flower", "forest", "garden", "ginger", "glass",  "guitar",
    "hammer", "harbor",  "honey",  "island", "jacket", "kettle", "ladder", "lemon",  "marble",
    "meadow", "mirror",  "needle", "ocean",  "orange", "paper",  "pepper", "pillow", "planet",
    "pocket", "rabbit",  "river",  "saddle", "silver", "spider", "summer", "temple", "tunnel",
    "violin", "window",  "winter"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_word(std::string_view text) {
  return text.size() >= 4 && text.size() <= 10 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= 'a' && c <= 'z'; }) &&
         text != "number" && text != "value";  // words of the lines themselves
}

// The last tokens of encode(prefix + answer) that encode(prefix) does not give.
struct Continuation {
  std::vector<std::int32_t> tokens;
  std::size_t num_answer_tokens = 0;
};
Continuation encode_continuation(const Tokenizer& tokenizer, const std::string& prefix,
                                 const std::string& answer) {
  Continuation result{.tokens = tokenizer.encode(prefix + answer)};
  const auto alone = tokenizer.encode(prefix);
  const auto [end, _] =
      std::mismatch(result.tokens.begin(), result.tokens.end(), alone.begin(), alone.end());
  result.num_answer_tokens = static_cast<std::size_t>(result.tokens.end() - end);
  return result;
}

std::vector<std::int32_t> repeat_to(std::span<const std::int32_t> tokens, std::size_t count) {
  if (tokens.empty()) {
    throw expectation_error("retrieval task", "text to hide lines in", "none but numbers");
  }
  std::vector<std::int32_t> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i] = tokens[i % tokens.size()];
  return result;
}

}  // namespace

std::vector<RetrievalTask> all_retrieval_tasks() {
  return {RetrievalTask::kSingleNeedle, RetrievalTask::kMultiNeedle,
          RetrievalTask::kVariableTracking};
}

std::string_view retrieval_task_name(RetrievalTask task) {
  switch (task) {
    case RetrievalTask::kSingleNeedle:
      return "single_needle";
    case RetrievalTask::kMultiNeedle:
      return "multi_needle";
    case RetrievalTask::kVariableTracking:
      return "variable_tracking";
  }
  INDEXCACHE_ASSERT(false);
}

RetrievalTask parse_retrieval_task(const std::string& name) {
  std::vector<std::string_view> names;
  for (const auto task : all_retrieval_tasks()) {
    names.push_back(retrieval_task_name(task));
    if (names.back() == name) return task;
  }
  throw expectation_error("retrieval task", fmt::format("{}", fmt::join(names, ", ")), quote(name));
}

std::vector<std::int32_t> RetrievalPrompt::answer_positions() const {
  std::vector<std::int32_t> positions;
  for (const auto& answer : answers)
    positions.insert(positions.end(), answer.begin(), answer.end());
  return positions;
}

RetrievalGenerator::RetrievalGenerator(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {
  traits_.resize(static_cast<std::size_t>(tokenizer.vocab_size()));
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string text = tokenizer.decode(std::array{id});
    auto& traits = traits_[static_cast<std::size_t>(id)];
    traits.ends_line = text.ends_with('\n');
    traits.starts_word = text.starts_with(' ') || text.starts_with('\n');
    traits.has_digit = std::any_of(text.begin(), text.end(), is_digit);
    if (words_.size() < kMaxWords && text.starts_with(' ') &&
        is_word(std::string_view(text).substr(1)) &&
        tokenizer.encode(text) == std::vector<std::int32_t>{id}) {
      words_.push_back(text.substr(1));
    }
  }
  if (words_.size() < kMinWords) words_.assign(std::begin(kPlainWords), std::end(kPlainWords));

  for (int value = kMinValue; value <= kMaxValue; ++value) {
    if (encode_continuation(tokenizer, "is ", std::to_string(value)).num_answer_tokens == 1) {
      values_.push_back(value);
    }
  }
  if (values_.size() < kMinValues) {
    values_.clear();
    for (int value = kMinValue; value <= kMaxValue; ++value) values_.push_back(value);
  }
}

std::vector<int> RetrievalGenerator::free_values(std::span<const std::int32_t> filler) const {
  const std::string text = tokenizer_->decode(filler);
  std::bitset<kMaxValue + 1> used;
  for (std::size_t i = 0; i + 2 < text.size(); ++i) {
    if (is_digit(text[i]) && is_digit(text[i + 1]) && is_digit(text[i + 2])) {
      used.set(static_cast<std::size_t>((text[i] - '0') * 100 + (text[i + 1] - '0') * 10 +
                                        (text[i + 2] - '0')));
    }
  }
  std::vector<int> values;
  std::copy_if(values_.begin(), values_.end(), std::back_inserter(values),
               [&](int value) { return !used[static_cast<std::size_t>(value)]; });
  return values;
}

void RetrievalGenerator::add_question(const std::string& text, int value, Lines& lines) const {
  Continuation question = encode_continuation(*tokenizer_, text, std::to_string(value));
  lines.questions.push_back(std::move(question.tokens));
  lines.answer_tokens.push_back(question.num_answer_tokens);
}

RetrievalGenerator::Lines RetrievalGenerator::draw_lines(const RetrievalOptions& options,
                                                         std::vector<int> values,
                                                         std::mt19937_64& random) const {
  const bool tracking = options.task == RetrievalTask::kVariableTracking;
  const auto num_keys =
      static_cast<std::size_t>(options.task == RetrievalTask::kSingleNeedle ? 1 : options.num_keys);
  const std::size_t words_a_key = tracking ? static_cast<std::size_t>(options.num_hops) + 1 : 1;
  if (words_.size() / words_a_key < num_keys) {
    throw expectation_error("retrieval task", fmt::format("at most {} words", words_.size()),
                            fmt::format("{} keys of {} words", num_keys, words_a_key));
  }
  std::vector<std::string> words = words_;
  draw_to_front(words, num_keys * words_a_key, random);
  draw_to_front(values, num_keys, random);

  Lines lines;
  std::vector<std::size_t> order(num_keys * words_a_key);  // the key of each line
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i / words_a_key;
  shuffle(order, random);
  std::vector<std::size_t> written(num_keys, 0);
  for (const std::size_t key : order) {
    const std::size_t step = written[key]++;
    const std::string* chain = &words[key * words_a_key];
    std::string line;
    if (!tracking) {
      line = fmt::format("\nThe number of {} is {}.\n", chain[0], values[key]);
    } else if (step == 0) {
      line = fmt::format("\nVAR {} = {}.\n", chain[0], values[key]);
    } else {
      line = fmt::format("\nVAR {} = VAR {}.\n", chain[step], chain[step - 1]);
    }
    lines.facts.push_back(tokenizer_->encode(line));
  }

  std::vector<std::size_t> asked(num_keys);
  for (std::size_t key = 0; key < num_keys; ++key) asked[key] = key;
  shuffle(asked, random);
  for (const std::size_t key : asked) {
    const std::string& word = words[key * words_a_key + words_a_key - 1];
    add_question(tracking ? fmt::format("\nThe value of VAR {} is ", word)
                          : fmt::format("\nThe number of {} is ", word),
                 values[key], lines);
  }
  return lines;
}

const RetrievalGenerator::TokenTraits& RetrievalGenerator::traits(std::int32_t id) const {
  if (id < 0 || static_cast<std::size_t>(id) >= traits_.size()) {
    throw expectation_error("retrieval task", fmt::format("token ids below {}", traits_.size()),
                            std::to_string(id));
  }
  return traits_[static_cast<std::size_t>(id)];
}

std::vector<std::size_t> RetrievalGenerator::draw_places(std::span<const std::int32_t> text,
                                                         std::size_t count,
                                                         std::mt19937_64& random) const {
  std::vector<std::size_t> places(count);
  for (auto& place : places) {
    const std::size_t drawn = draw_below(random, text.size() + 1);
    const std::size_t limit = std::min(drawn + kSnapTokens, text.size());
    std::size_t line = drawn, word = drawn;
    while (line < limit && !(line > 0 && traits(text[line - 1]).ends_line)) ++line;
    while (word < limit && !traits(text[word]).starts_word) ++word;
    place = line < limit ? line : word < limit ? word : drawn;
  }
  std::sort(places.begin(), places.end());
  return places;
}

RetrievalPrompt RetrievalGenerator::make(std::span<const std::int32_t> filler,
                                         const RetrievalOptions& options,
                                         std::mt19937_64& random) const {
  if (options.num_keys < 1 || options.num_hops < 1 || options.context < 1) {
    throw expectation_error(
        "retrieval task", "at least 1 key, 1 hop and 1 token of context",
        fmt::format("{}, {} and {}", options.num_keys, options.num_hops, options.context));
  }
  const auto num_keys =
      static_cast<std::size_t>(options.task == RetrievalTask::kSingleNeedle ? 1 : options.num_keys);
  const auto context = static_cast<std::size_t>(options.context);
  std::vector<std::int32_t> text = repeat_to(filler, context);
  std::vector<int> values = free_values(text);
  if (values.size() < num_keys) {
    text.assign(filler.begin(), filler.end());
    std::erase_if(text, [&](std::int32_t id) { return traits(id).has_digit; });
    text = repeat_to(text, context);
    values = values_;
    if (values.size() < num_keys) {
      throw expectation_error("retrieval task", fmt::format("at most {} values", values.size()),
                              fmt::format("{} keys", num_keys));
    }
  }
  const Lines lines = draw_lines(options, std::move(values), random);

  std::int64_t written = 0;
  for (const auto& fact : lines.facts) written += static_cast<std::int64_t>(fact.size());
  for (const auto& question : lines.questions)
    written += static_cast<std::int64_t>(question.size());
  const std::int64_t num_filler = options.context + 1 - written;
  if (num_filler < static_cast<std::int64_t>(lines.facts.size())) {
    throw expectation_error(
        "retrieval task",
        fmt::format("a context of at least {} tokens for {} lines and {} questions",
                    written + static_cast<std::int64_t>(lines.facts.size()) - 1, lines.facts.size(),
                    lines.questions.size()),
        fmt::format("{}", options.context));
  }
  text.resize(static_cast<std::size_t>(num_filler));
  const std::vector<std::size_t> places = draw_places(text, lines.facts.size(), random);

  RetrievalPrompt prompt;
  prompt.tokens.reserve(static_cast<std::size_t>(options.context) + 1);
  std::size_t fact = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    for (; fact < places.size() && places[fact] == i; ++fact) {
      prompt.tokens.insert(prompt.tokens.end(), lines.facts[fact].begin(), lines.facts[fact].end());
    }
    if (i < text.size()) prompt.tokens.push_back(text[i]);
  }
  for (std::size_t q = 0; q < lines.questions.size(); ++q) {
    prompt.tokens.insert(prompt.tokens.end(), lines.questions[q].begin(), lines.questions[q].end());
    auto& answer = prompt.answers.emplace_back();
    for (std::size_t i = lines.answer_tokens[q]; i > 0; --i) {
      answer.push_back(static_cast<std::int32_t>(prompt.tokens.size() - i - 1));
    }
  }
  return prompt;
}

}  // namespace indexcache
