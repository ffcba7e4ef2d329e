#define PCRE2_CODE_UNIT_WIDTH 8
#include "indexcache/tokenizer/pre_tokenizer.h"

#include <pcre2.h>

#include <array>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

constexpr std::size_t kJitStackStart = 32 * 1024;
constexpr std::size_t kJitStackLimit = 4 * 1024 * 1024;

struct FreePcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};
template <typename T>
using Pcre2Pointer = std::unique_ptr<T, FreePcre2>;

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

Pcre2Pointer<pcre2_code> compile(const std::string& pattern, const std::string& where) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  Pcre2Pointer<pcre2_code> code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                                              pattern.size(), PCRE2_UTF, &error, &offset, nullptr));
  if (!code) throw input_error("{}: PCRE2 refuses the pattern: {}", where, error_text(error));
  std::uint32_t matches_empty = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty) {
    throw expectation_error(where, "a pattern that matches characters",
                            "one that can match the empty string");
  }
  // Without JIT on this machine, pcre2_match interprets: slower, the same matches.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

}  // namespace

struct PreTokenizer::Step {
  Pcre2Pointer<pcre2_code> code;  // null: prefix a space
  SplitKeeps keeps = SplitKeeps::kMatchesAndGaps;
};

struct PreTokenizer::Scratch::Buffers {
  Pcre2Pointer<pcre2_match_data> match{pcre2_match_data_create(1, nullptr)};
  Pcre2Pointer<pcre2_match_context> context{pcre2_match_context_create(nullptr)};
  Pcre2Pointer<pcre2_jit_stack> stack{
      pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr)};
  std::string prefixed;
};

PreTokenizer::Scratch::Scratch() : buffers_(std::make_unique<Buffers>()) {
  if (!buffers_->match || !buffers_->context || !buffers_->stack) {
    throw device_error("tokenizer: out of memory for a pattern's match data");
  }
  pcre2_jit_stack_assign(buffers_->context.get(), nullptr, buffers_->stack.get());
}

PreTokenizer::Scratch::~Scratch() = default;

PreTokenizer::PreTokenizer(const std::vector<PreTokenizerStep>& steps, const std::string& where)
    : where_(where) {
  for (const PreTokenizerStep& step : steps) {
    if (const auto* split = std::get_if<SplitStep>(&step)) {
      steps_.push_back({compile(split->pattern, where), split->keeps});
    } else {
      steps_.push_back({});
    }
  }
}

PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::split(std::string_view text, Scratch& scratch, Sink& sink) const {
  run(0, text, *scratch.buffers_, sink);
}

void PreTokenizer::run(std::size_t step, std::string_view piece, Scratch::Buffers& buffers,
                       Sink& sink) const {
  if (piece.empty()) return;
  if (step == steps_.size()) return sink.take(piece);
  const Step& now = steps_[step];
  if (!now.code) {
    if (piece.front() == ' ') return run(step + 1, piece, buffers, sink);
    buffers.prefixed = ' ';
    buffers.prefixed += piece;
    return run(step + 1, buffers.prefixed, buffers, sink);
  }
  const auto keep = [&](std::size_t first, std::size_t last, SplitKeeps dropped) {
    if (now.keeps != dropped && first != last) {
      run(step + 1, piece.substr(first, last - first), buffers, sink);
    }
  };
  // The piece is a text of its own: a pattern never looks beyond it.
  std::size_t done = 0;
  while (done < piece.size()) {
    const int count =
        pcre2_match(now.code.get(), reinterpret_cast<PCRE2_SPTR>(piece.data()), piece.size(), done,
                    PCRE2_NO_UTF_CHECK, buffers.match.get(), buffers.context.get());
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      throw input_error("{}: the pattern gave up on this text: {}", where_, error_text(count));
    }
    const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer(buffers.match.get());
    const std::size_t first = ends[0], last = ends[1];
    keep(done, first, SplitKeeps::kMatches);
    keep(first, last, SplitKeeps::kGaps);
    done = last;
  }
  keep(done, piece.size(), SplitKeeps::kMatches);
}

}  // namespace indexcache
