// Generated retrieval tasks: facts hidden in running text and questions at its end, every answer
// one or few tokens.
//
//   single-key needle   one  "The number of WORD is DDD."  and its question
//   multi-key needle    n such lines, all of them asked
//   variable tracking   chains  "VAR X1 = DDD." ... "VAR X2 = VAR X1." ... ; the question asks for
//   the end of one chain
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "indexcache/data/text.h"
#include "indexcache/tokenizer/tokenizer.h"

namespace indexcache {

enum class RetrievalTask { kSingleNeedle, kMultiNeedle, kVariableTracking };

struct RetrievalOptions {
  RetrievalTask task = RetrievalTask::kMultiNeedle;
  int num_keys = 4;
  std::int64_t context = 4096;  // tokens in all, questions and answers included
};

struct RetrievalPrompt {
  std::vector<std::int32_t> tokens;  // [context + 1], the last answer token last
  // For each question: the positions t whose prediction of tokens[t + 1] is an answer token. Right
  // = all of them argmax.
  std::vector<std::vector<std::int32_t>> answers;
};

// Words and values are drawn so that a question's answer occurs nowhere else. `filler` is tokenised
// running text to hide the lines in. Deterministic in the generator's state.
RetrievalPrompt make_retrieval_prompt(const std::vector<std::int32_t>& filler,
                                      const Tokenizer& tokenizer, const RetrievalOptions& options,
                                      std::mt19937_64& random);

}  // namespace indexcache
