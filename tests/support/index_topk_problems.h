// Problems for index_topk's device tests: values whose scores are exact, ordinary ones, and ones that
// are hard for the selection.
#pragma once

#include <cmath>
#include <limits>

#include "support/index_topk_device.h"

namespace indexcache::testing {

using Random = std::mt19937;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline std::vector<float> normal(std::size_t count, Random& random) {
  std::normal_distribution<float> draw;
  std::vector<float> values(count);
  for (float& value : values) value = draw(random);
  return values;
}

inline std::vector<float> integers(std::size_t count, int bound, Random& random) {
  std::uniform_int_distribution<int> draw(-bound, bound);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(draw(random));
  return values;
}

inline std::vector<float> powers_of_two(std::size_t count, int low, int high, bool signs,
                                        Random& random) {
  std::uniform_int_distribution<int> exponent(low, high), sign(0, signs ? 1 : 0);
  std::vector<float> values(count);
  for (float& value : values) value = std::ldexp(sign(random) ? -1.0f : 1.0f, exponent(random));
  return values;
}

struct Shape {
  int queries, heads, keys, top_k;
};

inline Problem shaped(const std::string& name, IndexKeyFormat format, Shape s) {
  Problem p;
  p.name = name + (format == IndexKeyFormat::kE4M3 ? " e4m3" : " bf16") + " M" +
           std::to_string(s.queries) + " H" + std::to_string(s.heads) + " N" +
           std::to_string(s.keys) + " k" + std::to_string(s.top_k);
  p.format = format;
  p.queries = s.queries, p.heads = s.heads, p.keys = s.keys, p.top_k = s.top_k;
  p.start.assign(s.queries, 0);
  p.end.assign(s.queries, s.keys);
  p.scale.assign(s.keys, 1.0f);
  return p;
}

inline Problem lattice(IndexKeyFormat format, Shape s, unsigned seed) {
  Random random(seed);
  Problem p = shaped("lattice", format, s);
  p.q = integers(std::size_t{128} * s.queries * s.heads, 3, random);
  p.k = integers(std::size_t{128} * s.keys, 3, random);
  p.weights = powers_of_two(std::size_t(s.queries) * s.heads, -2, 1, true, random);
  if (format == IndexKeyFormat::kE4M3) p.scale = powers_of_two(s.keys, -1, 1, false, random);
  p.lattice = true;
  return p;
}

inline Problem gaussian(IndexKeyFormat format, Shape s, unsigned seed) {
  Random random(seed);
  Problem p = shaped("gaussian", format, s);
  p.q = normal(std::size_t{128} * s.queries * s.heads, random);
  p.k = normal(std::size_t{128} * s.keys, random);
  p.weights = normal(std::size_t(s.queries) * s.heads, random);
  if (format == IndexKeyFormat::kE4M3) {
    for (float& scale : p.scale) scale = 0.01f + 0.001f * std::abs(normal(1, random)[0]);
  }
  return p;
}

// Ranges of every kind: causal, empty, one key, inverted, beyond others.
inline void make_ragged(Problem& p, unsigned seed) {
  Random random(seed);
  p.name += " ragged";
  for (int t = 0; t < p.queries; ++t) {
    std::uniform_int_distribution<int> draw(0, p.keys);
    const int a = draw(random), b = draw(random);
    switch (t % 5) {
      case 0:
        p.start[t] = std::min(a, b), p.end[t] = std::max(a, b);
        break;
      case 1:
        p.start[t] = a, p.end[t] = a;
        break;
      case 2:
        p.start[t] = std::min(a, p.keys - 1), p.end[t] = p.start[t] + 1;
        break;
      case 3:
        p.start[t] = std::max(a, b), p.end[t] = std::min(a, b);
        break;
      default:
        p.start[t] = 0, p.end[t] = p.keys;
        break;
    }
  }
}

// No query's range begins at the first key, nor most at an even one.
inline void make_windows(Problem& p) {
  p.name += " windows";
  for (int t = 0; t < p.queries; ++t) {
    p.start[t] = 3 + t % 11;
    p.end[t] = std::max(p.start[t], p.keys - t % 5);
  }
}

inline void make_causal(Problem& p) {
  p.name += " causal";
  for (int t = 0; t < p.queries; ++t) p.end[t] = std::max(0, p.keys - p.queries + 1 + t);
}

// value(key) scales the key's row: the scores' order follows it.
inline void shape_keys(Problem& p, const std::string& name,
                       const std::function<float(int)>& value) {
  p.name = name + " " + p.name;
  const std::vector<float> direction(p.k.begin(), p.k.begin() + 128);
  for (int s = 0; s < p.keys; ++s) {
    for (int d = 0; d < 128; ++d) p.k[std::size_t{128} * s + d] = direction[d] * value(s);
  }
  p.lattice = false;
}

// Decode: requests of `tokens` queries over pages, with lengths of their own; the tokens of a request
// are its last ones.
inline Problem decoding(Problem p, int tokens, unsigned seed) {
  Random random(seed);
  p.name = "decode " + std::to_string(tokens) + " " + p.name;
  p.tokens = tokens;
  p.paged = true;
  const std::size_t own = p.k.size();
  for (int request = 1; request < p.requests();
       ++request) {  // other requests: the keys in another order
    for (std::size_t i = 0; i < own; i += 128) {
      const std::size_t from = (i + 128 * (request * 37 % (own / 128))) % own;
      p.k.insert(p.k.end(), p.k.begin() + from, p.k.begin() + from + 128);
      p.scale.push_back(p.scale[i / 128]);
    }
  }
  for (int request = 0; request < p.requests(); ++request) {
    std::uniform_int_distribution<int> draw(0, p.keys);
    int length = request % 4 == 0 ? p.keys : draw(random);
    if (request % 7 == 5) length = 0;
    for (int token = 0; token < tokens; ++token) {
      p.end[request * tokens + token] = std::max(0, length - tokens + 1 + token);
    }
  }
  return p;
}

}  // namespace indexcache::testing
