#include "indexcache/tokenizer/utf8.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "indexcache/tokenizer/tokenizer.h"

namespace indexcache {
namespace {

constexpr int kNoByte = -1;

// The printable bytes stand for themselves, the others follow from U+0100 on in their order.
constexpr bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr auto kByteOfCharacter = [] {
  std::array<std::int16_t, 0x144> bytes{};
  for (auto& byte : bytes) byte = kNoByte;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    bytes[stands_for_itself(byte) ? byte : next++] = static_cast<std::int16_t>(byte);
  }
  return bytes;
}();

}  // namespace

Utf8Step step_utf8(std::string_view bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {Utf8Unit::kCharacter, 1};
  // The Unicode Standard's table 3-7: only the second byte's range depends on the first byte.
  unsigned char low = 0x80, high = 0xBF;
  std::size_t length = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8Unit::kIllFormed, 1};
  }
  for (std::size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Unit::kIncomplete, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Unit::kIllFormed, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Unit::kCharacter, length};
}

std::optional<std::size_t> find_invalid_utf8(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    std::uint64_t block = 0;
    while (i + sizeof(block) <= text.size()) {
      std::memcpy(&block, text.data() + i, sizeof(block));
      if (block & 0x8080808080808080u) break;
      i += sizeof(block);
    }
    if (i == text.size()) break;
    const Utf8Step step = step_utf8(text.substr(i, 4));
    if (step.unit != Utf8Unit::kCharacter) return i;
    i += step.length;
  }
  return std::nullopt;
}

char32_t front_code_point(std::string_view text) {
  const auto bits = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[i]) & 0x3F);
  };
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return lead;
  if (lead < 0xE0) return (lead & 0x1Fu) << 6 | bits(1);
  if (lead < 0xF0) return (lead & 0x0Fu) << 12 | bits(1) << 6 | bits(2);
  return (lead & 0x07u) << 18 | bits(1) << 12 | bits(2) << 6 | bits(3);
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto tail = [&](int shift) {
    text += static_cast<char>(0x80 | ((code_point >> shift) & 0x3F));
  };
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xC0 | code_point >> 6);
    tail(0);
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xE0 | code_point >> 12);
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0 | code_point >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string_view append_lossy(std::string& text, std::string_view bytes) {
  while (!bytes.empty()) {
    const Utf8Step step = step_utf8(bytes);
    if (step.unit == Utf8Unit::kIncomplete) break;
    text +=
        step.unit == Utf8Unit::kCharacter ? bytes.substr(0, step.length) : kReplacementCharacter;
    bytes.remove_prefix(step.length);
  }
  return bytes;
}

std::optional<std::string> bytes_of_token(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  while (!token.empty()) {
    const char32_t character = front_code_point(token);
    if (character >= kByteOfCharacter.size() || kByteOfCharacter[character] == kNoByte) {
      return std::nullopt;
    }
    bytes += static_cast<char>(kByteOfCharacter[character]);
    token.remove_prefix(character < 0x80 ? 1 : 2);
  }
  return bytes;
}

}  // namespace indexcache
