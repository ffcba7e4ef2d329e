#include "indexcache/tokenizer/added_tokens.h"

#include <algorithm>

#include "indexcache/tokenizer/unicode_ranges.h"
#include "indexcache/tokenizer/utf8.h"

namespace indexcache {
namespace {

// The last character of `text`, not empty UTF-8.
std::string_view back_character(std::string_view text) {
  std::size_t first = text.size() - 1;
  while ((static_cast<unsigned char>(text[first]) & 0xC0) == 0x80) --first;
  return text.substr(first);
}

bool ends_in_word(std::string_view text) {
  return !text.empty() && is_word(front_code_point(back_character(text)));
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word(front_code_point(text));
}

std::size_t white_space_at_end(std::string_view text) {
  const std::size_t size = text.size();
  while (!text.empty()) {
    const std::string_view last = back_character(text);
    if (!is_white_space(front_code_point(last))) break;
    text.remove_suffix(last.size());
  }
  return size - text.size();
}

std::size_t white_space_at_start(std::string_view text) {
  const std::size_t size = text.size();
  while (!text.empty() && is_white_space(front_code_point(text))) {
    text.remove_prefix(step_utf8(text).length);
  }
  return size - text.size();
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), exact_(1), normalized_(1) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    insert(tokens_[i].normalized ? normalized_ : exact_, tokens_[i].content,
           static_cast<std::int32_t>(i));
  }
}

void AddedTokens::insert(Trie& trie, const std::string& content, std::int32_t token) {
  std::uint32_t node = 0;
  for (const char character : content) {
    const auto byte = static_cast<unsigned char>(character);
    auto& children = trie[node].children;
    const auto place = std::lower_bound(children.begin(), children.end(),
                                        std::pair<unsigned char, std::uint32_t>(byte, 0));
    if (place != children.end() && place->first == byte) {
      node = place->second;
    } else {
      node = static_cast<std::uint32_t>(trie.size());
      children.insert(place, {byte, node});
      trie.emplace_back();
    }
  }
  trie[node].token = token;
}

AddedTokens::Match AddedTokens::longest_match(const Trie& trie, std::string_view text) {
  Match match{-1, 0};
  std::uint32_t node = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto& children = trie[node].children;
    const auto place = std::lower_bound(children.begin(), children.end(),
                                        std::pair<unsigned char, std::uint32_t>(byte, 0));
    if (place == children.end() || place->first != byte) break;
    node = place->second;
    if (trie[node].token >= 0) match = {trie[node].token, i + 1};
  }
  return match;
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text) const {
  std::vector<Part> parts, result;
  split(exact_, text, parts);
  for (const Part& part : parts) {
    if (part.id == kText) {
      split(normalized_, part.text, result);
    } else {
      result.push_back(part);
    }
  }
  return result;
}

// As the library does it, its oddities too: a match that single_word discards still hides what it
// covers, and a token inside the white space that rstrip took is found again.
void AddedTokens::split(const Trie& trie, std::string_view text, std::vector<Part>& parts) const {
  std::size_t done = 0;
  const auto add_text = [&](std::size_t first, std::size_t last) {
    if (first < last) parts.push_back({kText, text.substr(first, last - first)});
  };
  std::size_t position = trie.front().children.empty() ? text.size() : 0;
  while (position < text.size()) {
    const Match match = longest_match(trie, text.substr(position));
    if (match.length == 0) {
      ++position;
      continue;
    }
    std::size_t first = position, last = position + match.length;
    position = last;
    const AddedToken& token = tokens_[match.token];
    if (token.single_word &&
        (ends_in_word(text.substr(0, first)) || starts_with_word(text.substr(last)))) {
      continue;
    }
    if (token.lstrip) {
      first -= done < first ? white_space_at_end(text.substr(done, first - done)) : first - done;
    }
    if (token.rstrip) last += white_space_at_start(text.substr(last));
    add_text(done, first);
    if (first < last) parts.push_back({token.id, text.substr(first, last - first)});
    done = last;
  }
  add_text(done, text.size());
}

}  // namespace indexcache
