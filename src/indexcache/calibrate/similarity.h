// Cross-layer similarity of attention outputs: the paper's appendix C, which chooses Full layers by
// it (search/similarity.h).
//
//   S[i][j] = mean over queries t of cos(o_i(t, T(i)), o_i(t, T(j))),   j < i, j Full
//
// o_i(t, T) [h * v] is layer i's core attention over the index set T: sparse MLA, brought from the
// latents to the value heads, all heads of the query side by side; what o_proj reads. T(j) is layer
// j's index set, T(i) the one that layer i reads: its own, or its source's where it is Shared. All
// under one pattern: hidden states and index sets are those of its pass, and of layer i alone the
// core attention is computed again for each j.
//
// Queries with fewer than k keys are left out, as in overlap.h. The cosine is taken in double; that
// with a zero vector counts 0.
#pragma once

#include <functional>
#include <vector>

#include "indexcache/data/text.h"
#include "indexcache/model/model.h"
#include "indexcache/policy/pattern.h"
#include "indexcache/search/similarity.h"

namespace indexcache {

// Entries whose source is not Full in `pattern` are 0. The same bits on any number of threads (0:
// as many as libtorch uses). `on_sequence` (optional) is told how many sequences are done, by one
// thread at a time. Throws InputError if no sequence has k tokens or an indexer that the pattern
// needs lacks.
SimilarityMatrix measure_similarity(const Model& model, const Pattern& pattern,
                                    const std::vector<Sequence>& sequences, int num_threads = 0,
                                    const std::function<void(int done)>& on_sequence = {});

}  // namespace indexcache
