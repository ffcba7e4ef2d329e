// Tokens that are looked for in the text before it is cut into pieces: special tokens and other
// additions to the vocabulary, with the flags the `tokenizers` library gives them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace indexcache {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool single_word = false;  // not beside a word character
  bool lstrip = false;       // takes the white space on its left
  bool rstrip = false;       // takes the white space on its right
  bool normalized = false;   // looked for only where no token without this flag was found
  bool special = false;      // left out of decoded text on request
};

class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // A stretch of the text: an added token, or text between added tokens (id kText).
  static constexpr std::int32_t kText = -1;
  struct Part {
    std::int32_t id;
    std::string_view text;
  };
  // The parts of `text` in order; none is empty text. Leftmost and, there, longest tokens first.
  std::vector<Part> split(std::string_view text) const;

 private:
  // The contents of one group of tokens as a trie.
  struct Node {
    std::vector<std::pair<unsigned char, std::uint32_t>> children;  // sorted by byte
    std::int32_t token = -1;                                        // index into tokens_
  };
  using Trie = std::vector<Node>;
  struct Match {
    std::int32_t token;
    std::size_t length;  // 0: no match
  };
  static void insert(Trie& trie, const std::string& content, std::int32_t token);
  static Match longest_match(const Trie& trie, std::string_view text);
  void split(const Trie& trie, std::string_view text, std::vector<Part>& parts) const;

  std::vector<AddedToken> tokens_;
  Trie exact_, normalized_;
};

}  // namespace indexcache
