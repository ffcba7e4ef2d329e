// Which coordinates of a vector form a rotated pair (a, b) -> (a cos - b sin, b cos + a sin).
#pragma once

namespace indexcache {

enum class RopeStyle {
  kInterleaved,  // (x[2i], x[2i+1]): the main attention of all models, the indexer of GLM
  kHalfSplit,    // (x[i], x[i + dim/2]): the indexer of DeepSeek-V3.2
};

}  // namespace indexcache
