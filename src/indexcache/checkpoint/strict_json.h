// JSON from files that may be hostile: one reading only, and nothing that costs more than its size.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace indexcache {

// Parses `text`, which `where` names in errors. Beyond the syntax it refuses a key that an object
// holds twice, nesting deeper than 64 levels, text that is not UTF-8 and numbers no double holds.
nlohmann::json parse_json_strictly(std::string_view text, const std::string& where);

// The library takes a NUL byte for the end of the text; JSON has none.
void check_no_nul(std::string_view text, const std::string& where);

// What is wrong with the text a nlohmann exception stems from, in one line, with the byte offset
// where it is known; what it shows of the text is quoted.
std::string json_complaint(const nlohmann::json::exception& error);

// A value as an error message shows it: dumped on one line, shortened.
std::string json_excerpt(const nlohmann::json& value);

}  // namespace indexcache
