// Every op against its double-precision reference, on the machine and device of the user.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

namespace indexcache {

struct SelfTestCase {
  std::string op;            // "index_topk"
  std::string name;          // "bf16, 37 x 200 keys, 5 heads x 48, k 20, ties"
  double worst = 0;          // largest error as a share of its bound; 0 for exact comparisons
  std::string failure = {};  // what was expected and found; empty = passed
};

// Runs all cases; `on_case` (optional) sees each as it is done. Deterministic inputs. What is
// compared:
//   index_topk on lattice inputs (all scores exact in fp32): the sets equal the reference's, ties
//     included; on random inputs: every key left out scores no more than every key kept, up to the
//     rounding bound of the two scores; rows ascending, unique, in range, padded with -1; fp8 keys,
//     contiguous and in shuffled pages, on lattice inputs alike;
//   index_overlap: the counts equal the reference's;
//   sparse_mla: outputs and lse within the rounding bound; empty rows exactly 0 and -inf; from pages
//     of bf16 and e4m3, by sets and by unions, alike;
//   index_q, index_k_append, latent_append: every value within half an e4m3 step and the rounding of
//     its rotation, scales those of their format, NaN rows and untouched slots as defined;
//   index_kl, selected_attention: values and gradients within the rounding bound; exactly 0 where
//     a key is seen by nobody;
//   all: a second run gives the same bits.
std::vector<SelfTestCase> run_selftest(
    at::Device device, const std::function<void(const SelfTestCase&)>& on_case = {});

}  // namespace indexcache
