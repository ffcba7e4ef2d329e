// Encoding speed of one thread, by its processor time.
//
//   tokenizer_bench TOKENIZER.json [--text FILE] [--json FILE]
//
// A text file, cold (empty cache) and warm, and hostile cases: one piece of a megabyte each. Median of 5 with the extremes.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/tokenizer/tokenizer.h"
#include "machine.h"

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

nlohmann::ordered_json report(const char* name, const std::string& text,
                              std::vector<Result> results) {
  std::sort(results.begin(), results.end(),
            [](const Result& a, const Result& b) { return a.seconds < b.seconds; });
  const auto rate = [&](const Result& result) { return text.size() / result.seconds / 1e6; };
  const Result median = results[results.size() / 2];
  fmt::print("{:<24} {:>10} bytes {:>9} tokens {:>8.2f} MB/s  (fastest {:.2f}, slowest {:.2f})\n",
             name, text.size(), median.num_tokens, rate(median), rate(results.front()),
             rate(results.back()));
  return {{"case", name},
          {"bytes", text.size()},
          {"tokens", median.num_tokens},
          {"mbytes_a_second", rate(median)},
          {"mbytes_a_second_extremes", {rate(results.back()), rate(results.front())}}};
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

nlohmann::ordered_json run(const std::string& tokenizer_json, const std::string& text_file) {
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  if (!text_file.empty()) {
    const std::string text = indexcache::read_file(text_file);
    std::vector<Result> cold;
    for (int i = 0; i < 5; ++i) {
      cold.push_back(encode_once(Tokenizer::from_file(tokenizer_json), text));
    }
    cases.push_back(report("text, cold", text, cold));
    const Tokenizer tokenizer = Tokenizer::from_file(tokenizer_json);
    encode_once(tokenizer, text);
    cases.push_back(report("text, warm", text, repeat(tokenizer, text)));
  }
  const Tokenizer tokenizer = Tokenizer::from_file(tokenizer_json);
  constexpr std::size_t kMegabyte = 1 << 20;
  const std::pair<const char*, std::string> hostile[] = {
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
  for (const auto& [name, text] : hostile) {
    cases.push_back(report(name, text, repeat(tokenizer, text)));
  }
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  std::string text_file, json_file;
  bool understood = argc % 2 == 0;
  for (int i = 2; understood && i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    understood = option == "--text" || option == "--json";
    (option == "--text" ? text_file : json_file) = argv[i + 1];
  }
  if (!understood) {
    fmt::print(stderr, "usage: tokenizer_bench TOKENIZER.json [--text FILE] [--json FILE]\n");
    return 2;
  }
  try {
    nlohmann::ordered_json report = indexcache::bench::provenance("tokenizer", argc, argv);
    report["cases"] = run(argv[1], text_file);
    if (!json_file.empty()) std::ofstream(json_file) << report.dump(1) << "\n";
  } catch (const indexcache::Error& error) {
    fmt::print(stderr, "tokenizer_bench: {}\n", error.what());
    return 1;
  }
}
