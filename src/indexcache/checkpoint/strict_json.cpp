#include "indexcache/checkpoint/strict_json.h"

#include <set>
#include <vector>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

constexpr int kMaxDepth = 64;

}  // namespace

std::string json_complaint(const nlohmann::json::exception& error) {
  // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while parsing
  // value - invalid literal; last read: 'TEXT'; expected ...", or "number overflow parsing 'TEXT'"
  std::string_view message = error.what();
  if (const auto end = message.find("] "); end != message.npos) message.remove_prefix(end + 2);
  for (const std::string_view opening : {"last read: '", "parsing '"}) {
    const auto at = message.find(opening);
    if (at == message.npos) continue;
    const auto begin = at + opening.size();
    auto end = message.rfind("'; expected ");
    if (end == message.npos || end < begin) end = message.rfind('\'');
    if (end < begin) continue;
    return std::string(message.substr(0, begin - 1)) + quote(message.substr(begin, end - begin)) +
           std::string(message.substr(end + 1));
  }
  return std::string(message);
}

void check_no_nul(std::string_view text, const std::string& where) {
  if (const auto at = text.find('\0'); at != std::string_view::npos) {
    throw input_error("{}: not valid JSON: a NUL byte at offset {}", where, at);
  }
}

nlohmann::json parse_json_strictly(std::string_view text, const std::string& where) {
  check_no_nul(text, where);
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string, std::less<>>> keys;  // of each object that is open
  const auto check = [&](int depth, Event event, nlohmann::json& parsed) {
    if (depth > kMaxDepth) {
      throw expectation_error(where, fmt::format("at most {} levels of nesting", kMaxDepth),
                              "more");
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw expectation_error(where, "every key once", quote(key) + " twice");
      }
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::exception& error) {
    throw input_error("{}: not valid JSON: {}", where, json_complaint(error));
  }
}

std::string json_excerpt(const nlohmann::json& value) {
  constexpr std::size_t kLength = 80;
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kLength) text = text.substr(0, kLength) + "...";
  return text;
}

}  // namespace indexcache
