// Generated retrieval tasks: facts hidden in running text and questions at its end, every answer
// one or few tokens. WORD and DDD stand for words and three-digit numbers that are one token each
// where the tokenizer has enough such.
//
//   single-key needle   one line  "The number of WORD is DDD."  and its question at the end, the
//                       same words up to the answer: "The number of WORD is" -> "DDD"
//   multi-key needle    num_keys such lines, all of them asked, in another order
//   variable tracking   num_keys chains  "VAR A = DDD."  "VAR B = VAR A."  "VAR C = VAR B."  (A, B,
//                       C words; num_hops copies), the lines of a chain in order, chains mixed; the
//                       question asks for the end of every chain: "The value of VAR C is" -> "DDD"
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/tokenizer/tokenizer.h"

namespace indexcache {

enum class RetrievalTask { kSingleNeedle, kMultiNeedle, kVariableTracking };

// "single_needle", "multi_needle", "variable_tracking".
std::vector<RetrievalTask> all_retrieval_tasks();
std::string_view retrieval_task_name(RetrievalTask task);
// Throws InputError with the names for one that is none of them.
RetrievalTask parse_retrieval_task(const std::string& name);

struct RetrievalOptions {
  RetrievalTask task = RetrievalTask::kMultiNeedle;
  int num_keys = 4;             // needles or chains; a single needle is one whatever it says
  int num_hops = 2;             // variable tracking: copies in a chain
  std::int64_t context = 4096;  // tokens in all, questions and answers included
};

struct RetrievalPrompt {
  std::vector<std::int32_t> tokens;  // [context + 1], the last answer token last
  // For each question: the positions t whose prediction of tokens[t + 1] is an answer token. Right
  // = all of them argmax.
  std::vector<std::vector<std::int32_t>> answers;

  // The positions of all answers, ascending: what the loss of a retrieval sequence is taken over.
  std::vector<std::int32_t> answer_positions() const;
};

// Makes prompts for one tokenizer, which must outlive it. Thread-safe.
class RetrievalGenerator {
 public:
  explicit RetrievalGenerator(const Tokenizer& tokenizer);

  // `filler` is tokenised running text to hide the lines in; it is repeated where it is too short.
  // An answer's digits stand in the prompt only in its fact and in its answer: numbers that the
  // filler holds are not drawn, and if it holds too many, its tokens with digits are left out.
  // Deterministic in the generator's state. Throws InputError if the lines do not fit into the
  // context or more words or values are asked for than there are.
  RetrievalPrompt make(std::span<const std::int32_t> filler, const RetrievalOptions& options,
                       std::mt19937_64& random) const;

  std::size_t num_words() const { return words_.size(); }
  std::size_t num_values() const { return values_.size(); }

 private:
  struct TokenTraits {
    bool ends_line = false, starts_word = false, has_digit = false;
  };
  struct Lines {
    std::vector<std::vector<std::int32_t>> facts;      // in the order in which they stand
    std::vector<std::vector<std::int32_t>> questions;  // with their answers
    std::vector<std::size_t> answer_tokens;            // of each question: how many, at its end
  };

  // The values whose digits do not occur in the filler.
  std::vector<int> free_values(std::span<const std::int32_t> filler) const;
  const TokenTraits& traits(std::int32_t id) const;
  // Where the facts stand: before which token of the text, ascending; between lines if there are
  // any near where it was drawn, else between words.
  std::vector<std::size_t> draw_places(std::span<const std::int32_t> text, std::size_t count,
                                       std::mt19937_64& random) const;
  Lines draw_lines(const RetrievalOptions& options, std::vector<int> values,
                   std::mt19937_64& random) const;
  void add_question(const std::string& text, int value, Lines& lines) const;

  const Tokenizer* tokenizer_;
  std::vector<std::string> words_;
  std::vector<int> values_;
  std::vector<TokenTraits> traits_;  // by token id
};

}  // namespace indexcache
