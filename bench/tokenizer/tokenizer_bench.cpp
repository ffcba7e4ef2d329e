// Encoding speed of one thread, by its processor time.
//
//   tokenizer_bench TOKENIZER.json TEXT      a text file, cold (empty cache) and warm, median of 5
//   tokenizer_bench TOKENIZER.json           the hostile cases alone: one piece of a megabyte
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/tokenizer/tokenizer.h"

namespace {

using indexcache::Tokenizer;

struct Result {
  double seconds;
  std::size_t num_tokens;
};

// Of this thread: the figure is per core, whatever else the machine does.
double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Result encode_once(const Tokenizer& tokenizer, const std::string& text) {
  const double start = cpu_seconds();
  const std::size_t num_tokens = tokenizer.encode(text).size();
  return {cpu_seconds() - start, num_tokens};
}

void report(const char* name, const std::string& text, std::vector<Result> results) {
  std::sort(results.begin(), results.end(),
            [](const Result& a, const Result& b) { return a.seconds < b.seconds; });
  const Result median = results[results.size() / 2];
  fmt::print("{:<24} {:>10} bytes {:>9} tokens {:>8.2f} MB/s  (fastest {:.2f}, slowest {:.2f})\n",
             name, text.size(), median.num_tokens, text.size() / median.seconds / 1e6,
             text.size() / results.front().seconds / 1e6,
             text.size() / results.back().seconds / 1e6);
}

std::vector<Result> repeat(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<Result> results;
  for (int i = 0; i < 5; ++i) results.push_back(encode_once(tokenizer, text));
  return results;
}

std::string repeated(const std::string& unit, std::size_t size) {
  std::string text;
  while (text.size() < size) text += unit;
  return text;
}

void run(const std::string& tokenizer_json, const char* text_file) {
  if (text_file != nullptr) {
    const std::string text = indexcache::read_file(text_file);
    std::vector<Result> cold;
    for (int i = 0; i < 5; ++i) {
      cold.push_back(encode_once(Tokenizer::from_file(tokenizer_json), text));
    }
    report("text, cold", text, cold);
    const Tokenizer tokenizer = Tokenizer::from_file(tokenizer_json);
    encode_once(tokenizer, text);
    report("text, warm", text, repeat(tokenizer, text));
  }
  const Tokenizer tokenizer = Tokenizer::from_file(tokenizer_json);
  constexpr std::size_t kMegabyte = 1 << 20;
  const std::pair<const char*, std::string> cases[] = {
      {"one word of a's", std::string(kMegabyte, 'a')},
      {"one word of the's", repeated("the", kMegabyte)},
      {"spaces", std::string(kMegabyte, ' ')},
      {"spaces before a word", std::string(kMegabyte, ' ').append("x")},
      {"newlines", std::string(kMegabyte, '\n')},
      {"space, newline", repeated(" \n", kMegabyte)},
      {"punctuation", repeated("<|", kMegabyte)},
      {"digits", std::string(kMegabyte, '7')},
      {"one CJK run", repeated("\xE6\xBC\xA2\xE5\xAD\x97", kMegabyte)},
      {"combining marks", repeated("\xCC\x81", kMegabyte)},
  };
  for (const auto& [name, text] : cases) report(name, text, repeat(tokenizer, text));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    fmt::print(stderr, "usage: tokenizer_bench TOKENIZER.json [TEXT]\n");
    return 2;
  }
  try {
    run(argv[1], argc == 3 ? argv[2] : nullptr);
  } catch (const indexcache::Error& error) {
    fmt::print(stderr, "tokenizer_bench: {}\n", error.what());
    return 1;
  }
}
