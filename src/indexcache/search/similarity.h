// The paper's appendix C: Full layers chosen by how similar the layers' attention stays, not by
// loss. Its finding is negative (a layer's similarity is local, a few missed tokens cascade); it is
// here to compare with.
//
// Of all nearest patterns with `keep` Full layers, layer 0 among them, the one with the highest
//
//   sum over Shared layers l of S[l][source(l)]
//
// exactly, with dp[i][k] the highest sum over the layers below i where i is the Full layer after k
// others (or i = N, the end):
//
//   dp[i][k] = max over j < i of dp[j][k-1] + sum over m = j+1 .. i-1 of S[m][j],   dp[0][0] = 0
//
// j being the k-th Full layer. Ties: the lowest j, so of equal sums the pattern whose last Full
// layer is lowest, then the one before it, and so on.
#pragma once

#include <vector>

#include "indexcache/policy/pattern.h"

namespace indexcache {

// S[l][s] for s < l: N rows, row l of l entries. Measured by calibrate/similarity.h.
using SimilarityMatrix = std::vector<std::vector<double>>;

// `allowed`: the layers that may be Full, ascending, 0 first; entries of other sources are not
// read. keep: 1 to their number. Throws InputError if the matrix has another shape or an entry that
// is read is not finite.
Pattern most_similar_pattern(const SimilarityMatrix& similarity, const std::vector<int>& allowed,
                             int keep);

}  // namespace indexcache
