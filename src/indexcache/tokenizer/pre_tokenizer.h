// Cuts text into the pieces that byte-pair encoding works on: a list of steps, each applied to
// every piece the steps before it left.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace indexcache {

// Which parts of a piece a split keeps: the matches of its pattern and what lies between them.
enum class SplitKeeps { kMatchesAndGaps, kMatches, kGaps };

struct SplitStep {
  std::string pattern;  // PCRE2's syntax, from split_pattern.h
  SplitKeeps keeps = SplitKeeps::kMatchesAndGaps;
};

// Puts a space before a piece that does not start with one.
struct PrefixSpaceStep {};

using PreTokenizerStep = std::variant<SplitStep, PrefixSpaceStep>;

class PreTokenizer {
 public:
  // Throws InputError starting with `where` for patterns that PCRE2 refuses or that match nothing.
  PreTokenizer(const std::vector<PreTokenizerStep>& steps, const std::string& where);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  // What one thread needs to run patterns.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class PreTokenizer;
    struct Buffers;
    std::unique_ptr<Buffers> buffers_;
  };

  // Calls sink.take(piece) for each piece of `text` (UTF-8, not checked), in order; none is empty.
  // Throws InputError if a pattern needs more steps or memory than PCRE2 allows.
  class Sink {
   public:
    virtual void take(std::string_view piece) = 0;

   protected:
    ~Sink() = default;
  };
  void split(std::string_view text, Scratch& scratch, Sink& sink) const;

 private:
  struct Step;
  void run(std::size_t step, std::string_view piece, Scratch::Buffers& buffers, Sink& sink) const;
  std::vector<Step> steps_;
  std::string where_;
};

}  // namespace indexcache
