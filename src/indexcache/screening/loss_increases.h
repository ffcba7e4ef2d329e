// What first-order screening chooses patterns by (search/screened.h): how much the loss would grow
// if one layer read another layer's index set, estimated for all pairs from one gradient.
//
// With L the mean loss of a sequence over its n scored tokens under the start pattern, o_l(t, T)
// layer l's core attention at token t over the index set T (as in calibrate/similarity.h),
// g_l(t) = dL / d o_l(t), and T(l) the set that layer l reads, a change of set alone does
//
//   d_ls(t) = o_l(t, T(s)) - o_l(t, T(l))           s < l, s Full
//   E[l][s] = mean over sequences of  sum over t of c_t + n/2 c_t^2,   c_t = <g_l(t), d_ls(t)>
//
// The first term is the change of the loss to first order. The second is its second order with
// Fisher's matrix for the Hessian, 1/2n sum over tokens i of <grad loss_i, d>^2, in which scores of
// different tokens and changes at different t count as independent: then sum over i of
// <grad loss_i, d(t)>^2 is near <sum over i of grad loss_i, d(t)>^2 = n^2 c_t^2. It is what tells
// changes that cancel by chance from small ones: the first term alone ranks them badly
// (docs/experiments.md, "Screening").
//
// What the gradient does not see, E does not hold: later layers' own index sets do not move, and an
// answer given with certainty has next to no gradient, whatever its loss becomes without the key it
// was read from. So patterns chosen by E are to be measured.
//
// Memory, with T tokens, N layers, H bytes of hidden state and I bytes of index set a token: each
// thread holds N states of T * (H + I) bytes, and one layer's graph. Time is that of the sparse
// training pass, quadratic in T where it is.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "indexcache/data/text.h"
#include "indexcache/model/model.h"
#include "indexcache/policy/pattern.h"
#include "indexcache/search/journal.h"
#include "indexcache/search/screened.h"

namespace indexcache {

// Entries whose source is not Full in `start` are 0. The same bits on any number of threads of a
// CPU (0: as many as libtorch uses). `journal` (may be null) answers for the sequences that it knows
// and records the others. `on_sequence` (optional) is told how many sequences are done, those of the
// journal included, by one thread at a time. Throws InputError if no sequence has index_topk tokens,
// an indexer that `start` needs lacks, or an increase is not finite.
IncreaseMatrix estimate_increases(const Model& model, const Pattern& start,
                                  const std::vector<Sequence>& sequences, int num_threads = 0,
                                  Journal* journal = nullptr,
                                  const std::function<void(int done)>& on_sequence = {});

// What that computes, per sequence.
struct ScreeningRuns {
  std::int64_t layers = 0;      // the pass, each layer but the first once more, its gradient as two
  std::int64_t attentions = 0;  // of each layer but the first: over its set and the other ones
};
ScreeningRuns screening_runs(const Pattern& start);

}  // namespace indexcache
