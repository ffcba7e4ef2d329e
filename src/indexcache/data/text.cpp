#include "indexcache/data/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <string_view>
#include <thread>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"
#include "indexcache/data/retrieval.h"

namespace indexcache {
namespace {

// Runs body(i) for i in [0, count) on several threads; the first exception is thrown again.
template <typename Body>
void parallel_for(std::size_t count, int num_threads, const Body& body) {
  if (num_threads <= 0) num_threads = static_cast<int>(std::thread::hardware_concurrency());
  const auto workers = std::clamp<std::size_t>(static_cast<std::size_t>(num_threads), 1, count);
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (std::size_t i = next++; i < count; i = next++) body(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::jthread> threads;
  for (std::size_t i = 1; i < workers; ++i) threads.emplace_back(work);
  work();
  threads.clear();  // joins
  if (failure) std::rethrow_exception(failure);
}

// Every question is a measurement: the more of them a sequence asks, the less of a search is noise.
RetrievalOptions retrieval_options(std::int64_t context) {
  RetrievalOptions options;
  options.task = RetrievalTask::kMultiNeedle;
  options.num_keys = static_cast<int>(std::clamp<std::int64_t>(context / 128, 1, 16));
  options.context = context;
  return options;
}

}  // namespace

std::int32_t end_of_text_token(const Tokenizer& tokenizer) {
  for (const char* token : {"<|endoftext|>", "<｜end▁of▁sentence｜>", "</s>"}) {
    if (const auto id = tokenizer.token_id(token)) return *id;
  }
  throw expectation_error("tokenizer",
                          "an end-of-text token: <|endoftext|>, <｜end▁of▁sentence｜> or </s>",
                          "none of them");
}

TokenStream tokenize(const std::vector<Document>& documents, const Tokenizer& tokenizer,
                     int num_threads) {
  const std::int32_t end_of_text = end_of_text_token(tokenizer);
  std::vector<std::vector<std::int32_t>> encoded(documents.size());
  parallel_for(documents.size(), num_threads,
               [&](std::size_t i) { encoded[i] = tokenizer.encode(documents[i].text); });
  TokenStream stream;
  std::size_t total = documents.size();
  for (const auto& tokens : encoded) total += tokens.size();
  stream.tokens.reserve(total);
  stream.document_starts.reserve(documents.size());
  for (auto& tokens : encoded) {
    stream.document_starts.push_back(static_cast<std::int64_t>(stream.tokens.size()));
    stream.tokens.insert(stream.tokens.end(), tokens.begin(), tokens.end());
    stream.tokens.push_back(end_of_text);
    tokens = {};  // two copies of a large corpus never exist whole
  }
  return stream;
}

std::span<const std::int32_t> draw_window(std::span<const std::int32_t> tokens, std::int64_t length,
                                          std::mt19937_64& random) {
  const auto available = static_cast<std::int64_t>(tokens.size());
  if (length < 1 || length > available) {
    throw expectation_error("text", fmt::format("at least {} tokens for a window", length),
                            fmt::format("{} tokens", available));
  }
  const auto starts = static_cast<std::uint64_t>(available - length + 1);
  return tokens.subspan(draw_below(random, starts), static_cast<std::size_t>(length));
}

std::vector<Sequence> make_sequences(const std::vector<Document>& documents,
                                     const Tokenizer& tokenizer, const SequenceOptions& options) {
  if (options.context < 1) {
    throw expectation_error("context", "at least 1 token", std::to_string(options.context));
  }
  if (options.num_sequences < 1) {
    throw expectation_error("sequences", "at least 1", std::to_string(options.num_sequences));
  }
  if (!(options.retrieval_share >= 0 && options.retrieval_share <= 1)) {
    throw expectation_error("share of retrieval tasks", "a number from 0 to 1",
                            fmt::format("{}", options.retrieval_share));
  }
  const TokenStream stream = tokenize(documents, tokenizer);
  const auto window = static_cast<std::uint64_t>(options.context) + 1;
  const auto count = static_cast<std::uint64_t>(options.num_sequences);
  const std::uint64_t available = stream.tokens.size();
  if (available / window < count) {
    throw expectation_error("text",
                            fmt::format("at least {} tokens for {} sequences of context {}",
                                        count * window, count, options.context),
                            fmt::format("{} tokens", available));
  }

  // What the windows leave over is cut at random places; the pieces are the gaps between them.
  std::mt19937_64 random(options.seed);
  std::vector<std::uint64_t> starts(count);
  for (auto& start : starts) start = draw_below(random, available - count * window + 1);
  std::sort(starts.begin(), starts.end());

  const RetrievalGenerator generator(tokenizer);
  std::vector<Sequence> sequences(count);
  int num_retrieval = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto text = std::span(stream.tokens).subspan(starts[i] + i * window, window);
    const double due = std::floor(static_cast<double>(i + 1) * options.retrieval_share + 1e-9);
    if (num_retrieval < static_cast<int>(due)) {
      RetrievalPrompt prompt = generator.make(text, retrieval_options(options.context), random);
      sequences[i].scored = prompt.answer_positions();
      sequences[i].tokens = std::move(prompt.tokens);
      ++num_retrieval;
    } else {
      sequences[i].tokens.assign(text.begin(), text.end());
    }
  }
  return sequences;
}

}  // namespace indexcache
