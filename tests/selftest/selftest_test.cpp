#include "indexcache/selftest/selftest.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <set>

#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(SelfTest, PassesOnTheCpuAndCoversEveryOp) {
  std::set<std::string> ops, tested;
  const auto folder = std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "src/indexcache/ops";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_directory()) ops.insert(entry.path().filename());
  }
  std::size_t seen = 0;
  const auto results = run_selftest(at::kCPU, [&](const SelfTestCase&) { ++seen; });
  EXPECT_EQ(seen, results.size());
  for (const auto& result : results) {
    EXPECT_EQ(result.failure, "") << result.op << ": " << result.name;
    EXPECT_LE(result.worst, 1) << result.op << ": " << result.name;
    tested.insert(result.op);
  }
  EXPECT_EQ(tested, ops);
}

// --- Wrong ops are found.
// What an op's cases say of it, a failure ("" = passed) a case.
template <typename Cases>
std::vector<std::string> failures_of(const Cases& cases) {
  std::vector<std::string> failures;
  cases({.device = at::kCPU,
         .generator = at::detail::createCPUGenerator(1),
         .report = [&](const SelfTestCase& result) { failures.push_back(result.failure); }});
  return failures;
}

std::size_t num_failed(const std::vector<std::string>& failures) {
  return static_cast<std::size_t>(
      std::count_if(failures.begin(), failures.end(), [](const auto& f) { return !f.empty(); }));
}

// Ways of being wrong that a case must see, each case's op in the next of them: the big cases take
// too long to run them all in each.
template <typename Result>
class Spoils {
 public:
  using Spoil = std::pair<std::string, std::function<void(Result&)>>;
  explicit Spoils(std::vector<Spoil> spoils) : spoils_(std::move(spoils)) {}
  // A case runs its op twice.
  void apply(Result& result) { spoils_[calls_++ / 2 % spoils_.size()].second(result); }
  void expect_seen(const std::vector<std::string>& failures) const {
    ASSERT_EQ(2 * failures.size(), calls_);
    for (std::size_t i = 0; i < failures.size(); ++i) {
      EXPECT_NE(failures[i], "") << "case " << i << ": " << spoils_[i % spoils_.size()].first;
    }
  }

 private:
  std::vector<Spoil> spoils_;
  std::size_t calls_ = 0;
};

TEST(SelfTest, FindsAnIndexTopkThatDropsAKeyOrPicksTheWrongOne) {
  // The first case has one key alone, so there is none to be out of order or to exchange.
  Spoils<at::Tensor> spoils({
      {"the last key is dropped", [](at::Tensor& sets) { sets[-1][-1] = -1; }},
      {"an empty row is given a key", [](at::Tensor& sets) { sets[0][0] = 0; }},
      {"rows descend", [](at::Tensor& sets) { sets.copy_(sets.flip(1)); }},
      {"the best keys leave room for others",
       [](at::Tensor& sets) {
         // The last row sees all keys: the complement's first keys in place of its own.
         std::set<std::int64_t> kept;
         for (std::int64_t i = 0; i < sets.size(1); ++i) kept.insert(sets[-1][i].item<int>());
         for (std::int64_t i = 0, s = 0; i < sets.size(1); ++s) {
           if (!kept.contains(s)) sets[-1][i++] = s;
         }
       }},
  });
  spoils.expect_seen(failures_of([&](const SelfTestRun& run) {
    index_topk_cases(run,
                     [&](const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                         const at::Tensor& start, const at::Tensor& end, std::int64_t k) {
                       auto sets = index_topk(q, keys, weights, start, end, k);
                       spoils.apply(sets);
                       return sets;
                     });
  }));
}

// Keys of equal score: the higher index in place of the lower is within any rounding bound, and
// wrong.
TEST(SelfTest, FindsAnIndexTopkThatBreaksTiesTheOtherWay) {
  const auto mirrored = failures_of([](const SelfTestRun& run) {
    index_topk_cases(run, [](const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                             const at::Tensor& start, const at::Tensor& end, std::int64_t k) {
      // The keys read from their end: the same scores, the order of equal ones turned round.
      const auto n = keys.size(0);
      const auto turned =
          index_topk(q, keys.flip(0).contiguous(), weights, (n - end).to(at::kInt).contiguous(),
                     (n - start).to(at::kInt).contiguous(), k);
      auto sets = (end - start).unsqueeze(1) - 1 - turned;
      sets.masked_fill_(turned < 0, std::numeric_limits<std::int32_t>::max());
      sets = std::get<0>(sets.sort(1)).to(at::kInt);
      return sets.masked_fill(sets == std::numeric_limits<std::int32_t>::max(), -1);
    });
  });
  // Lattice and random inputs in turn, four cases each; random ones have no ties to break.
  for (std::size_t i = 0; i < mirrored.size(); ++i) {
    const bool lattice = i / 4 % 2 == 0, one_key = i % 4 == 0;
    EXPECT_EQ(mirrored[i].starts_with("at ["), lattice && !one_key) << i << ": " << mirrored[i];
  }
}

TEST(SelfTest, FindsAnIndexOverlapThatMiscounts) {
  const auto failures = failures_of([](const SelfTestRun& run) {
    index_overlap_cases(run, [](const at::Tensor& a, const at::Tensor& b) {
      auto counts = index_overlap(a, b);
      counts[-1] += 1;
      return counts;
    });
  });
  EXPECT_EQ(num_failed(failures), 4u);
}

TEST(SelfTest, FindsAnIndexUnionThatLosesAMaskOrAKey) {
  Spoils<IndexUnion> spoils({
      {"a key too few", [](IndexUnion& u) { u.counts[-1] -= 1; }},
      {"a key is given to a query that did not select it",
       [](IndexUnion& u) { u.entries[0][0] = u.entries[0][0].item<int>() ^ (1 << 30); }},
      {"keys descend",
       [](IndexUnion& u) {
         const std::int64_t count = u.counts[0].item<int>();
         const auto row = u.entries[0].narrow(0, 0, count);
         row.copy_(row.flip(0));
       }},
  });
  spoils.expect_seen(failures_of([&](const SelfTestRun& run) {
    index_union_cases(run, [&](const at::Tensor& indices, const at::Tensor& group_begin) {
      auto result = index_union(indices, group_begin);
      spoils.apply(result);
      return result;
    });
  }));
}

TEST(SelfTest, FindsASparseMlaThatShiftsOrReturnsNaN) {
  const auto expect_seen = [](Spoils<SparseMlaResult> spoils) {
    spoils.expect_seen(failures_of([&](const SelfTestRun& run) {
      sparse_mla_cases(run, [&](const at::Tensor& q, const at::Tensor& kv, const at::Tensor& sets,
                                std::int64_t value_dim, double scale) {
        auto result = sparse_mla(q, kv, sets, value_dim, scale);
        spoils.apply(result);
        return result;
      });
    }));
  };
  expect_seen(Spoils<SparseMlaResult>(
      {{"output moved by one element", [](auto& r) { r.out = r.out.roll(1, -1); }},
       {"NaN in the output", [](auto& r) { r.out[-1][0][0] = kNaN; }},
       {"NaN in lse", [](auto& r) { r.lse[-1][0] = kNaN; }},
       {"infinite lse", [](auto& r) { r.lse[-1][0] = kInfinity; }}}));
  expect_seen(Spoils<SparseMlaResult>(
      {{"an empty row's output", [](auto& r) { r.out[0][0][0] = 1e-30; }},
       {"an empty row's lse", [](auto& r) { r.lse[0][0] = 0; }},
       {"output of another query", [](auto& r) { r.out = r.out.roll(1, 0); }}}));
}

TEST(SelfTest, FindsAnIndexTopkOverPagesThatPicksTheWrongKey) {
  const auto wrong = [](at::Tensor sets) {
    sets[-1][-1] = sets[-1][-1].item<int>() == -1 ? 0 : -1;
    return sets;
  };
  const auto paged = failures_of([&](const SelfTestRun& run) {
    index_topk_fp8_cases(
        run, [&](const auto&... arguments) { return wrong(index_topk_paged(arguments...)); });
  });
  EXPECT_EQ(num_failed(paged), 4u);
  const auto contiguous = failures_of([&](const SelfTestRun& run) {
    index_topk_fp8_cases(run, index_topk_paged, [&](const auto&... arguments) {
      return wrong(index_topk_fp8(arguments...));
    });
  });
  EXPECT_EQ(num_failed(contiguous), 4u);
}

TEST(SelfTest, FindsAnIndexQOfWrongValuesOrWeights) {
  const auto with = [](const std::function<void(IndexQueries&)>& spoil) {
    return num_failed(failures_of([&](const SelfTestRun& run) {
      index_q_cases(run, [&](const auto&... arguments) {
        auto result = index_q(arguments...);
        spoil(result);
        return result;
      });
    }));
  };
  EXPECT_EQ(with([](auto&) {}), 0u);
  EXPECT_EQ(with([](auto& r) { r.weights = r.weights * 1.5; }), 12u);
  EXPECT_EQ(with([](auto& r) { r.q = r.q.view(at::kByte).roll(1, -1).view(r.q.scalar_type()); }),
            12u);
  EXPECT_EQ(with([](auto& r) { r.q.view(at::kByte)[0][0][100] = 0x7F; }), 12u);
  EXPECT_EQ(with([](auto& r) { r.q.view(at::kByte)[1][2][0] = 0; }), 12u);  // of a NaN row
}

TEST(SelfTest, FindsAppendsOfWrongBytesOrPlaces) {
  const auto keys = [](const std::function<void(const at::Tensor&)>& spoil) {
    return num_failed(failures_of([&](const SelfTestRun& run) {
      index_k_append_cases(
          run, [&](const at::Tensor& keys, const at::Tensor& cos_sin, const at::Tensor& positions,
                   const at::Tensor& slots, const IndexKeyPages& cache, double amax_floor) {
            index_k_append(keys, cos_sin, positions, slots, cache, amax_floor);
            spoil(cache.pages);
          });
    }));
  };
  EXPECT_EQ(keys([](auto&) {}), 0u);
  EXPECT_EQ(keys([](auto& pages) { pages.copy_(pages.roll(128, 1)); }), 12u);  // a key further
  EXPECT_EQ(keys([](auto& pages) { pages.copy_(pages.roll(1, 0)); }), 12u);    // a page further
  EXPECT_EQ(keys([](auto& pages) { pages.narrow(1, 64 * 128, 256).fill_(0); }), 12u);  // no scales
  const auto latents = [](const std::function<void(const at::Tensor&)>& spoil) {
    return num_failed(failures_of([&](const SelfTestRun& run) {
      latent_append_cases(
          run, [&](const at::Tensor& latents, const at::Tensor& rope_keys, const at::Tensor& slots,
                   const at::Tensor& pages, ScaleFormat scale, double amax_floor) {
            latent_append(latents, rope_keys, slots, pages, scale, amax_floor);
            spoil(pages);
          });
    }));
  };
  EXPECT_EQ(latents([](auto&) {}), 0u);
  EXPECT_EQ(latents([](auto& pages) { pages.copy_(pages.roll(1, 1)); }), 4u);   // a row further
  EXPECT_EQ(latents([](auto& pages) { pages.narrow(2, -1, 1).zero_(); }), 4u);  // a rope value
  EXPECT_EQ(latents([](auto& pages) { pages.narrow(2, 100, 1).fill_(1); }), 4u);
}

TEST(SelfTest, FindsASparseMlaOverPagesThatIsWrong) {
  const auto shifted = [](SparseMlaResult r) { return SparseMlaResult{r.out.roll(1, -1), r.lse}; };
  EXPECT_EQ(num_failed(failures_of([&](const SelfTestRun& run) {
              sparse_mla_paged_cases(run, [&](const auto&... arguments) {
                return shifted(sparse_mla_paged(arguments...));
              });
            })),
            12u);
  EXPECT_EQ(num_failed(failures_of([&](const SelfTestRun& run) {
              sparse_mla_paged_cases(run, sparse_mla_paged, [&](const auto&... arguments) {
                return shifted(sparse_mla_union(arguments...));
              });
            })),
            12u);
}

TEST(SelfTest, FindsAnIndexKlOfWrongValueOrGradient) {
  const auto with = [](const std::function<void(IndexKl&)>& spoil) {
    return failures_of([&](const SelfTestRun& run) {
      index_kl_cases(run, [&](const at::Tensor& mass, const at::Tensor& q, const at::Tensor& keys,
                              const at::Tensor& weights, const at::Tensor& visible) {
        auto result = index_kl(mass, q, keys, weights, visible);
        spoil(result);
        return result;
      });
    });
  };
  EXPECT_EQ(num_failed(with([](auto&) {})), 0u);
  // A query that sees one key alone has no gradient to get wrong: four of the six cases show these.
  const std::map<std::string, std::function<void(IndexKl&)>> wrong = {
      {"keys' gradient moved by a key", [](auto& r) { r.grad_keys = r.grad_keys.roll(1, 1); }},
      {"q's gradient with the other sign", [](auto& r) { r.grad_q = -r.grad_q; }},
      {"q's gradient 1.5 times", [](auto& r) { r.grad_q = 1.5 * r.grad_q; }},
      {"weights' gradient of another head",
       [](auto& r) { r.grad_weights = r.grad_weights.roll(1, -1); }}};
  for (const auto& [name, spoil] : wrong) EXPECT_EQ(num_failed(with(spoil)), 4u) << name;
  EXPECT_EQ(num_failed(with([](auto& r) { r.kl += 0.3; })), 6u);
  EXPECT_EQ(num_failed(with([](auto& r) { r.grad_keys[0][0][0] = kNaN; })), 6u);
}

TEST(SelfTest, FindsASelectedAttentionOfWrongValueOrGradient) {
  const auto with = [](const std::function<void(SelectedAttention&)>& spoil,
                       const std::function<void(SelectedAttentionGrad&)>& spoil_grad) {
    return failures_of([&](const SelfTestRun& run) {
      selected_attention_cases(
          run,
          [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const at::Tensor& visible, double scale) {
            auto result = selected_attention(q, k, v, visible, scale);
            spoil(result);
            return result;
          },
          [&](const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
              const at::Tensor& v, const at::Tensor& out, const at::Tensor& visible, double scale) {
            auto result = selected_attention_backward(grad_out, q, k, v, out, visible, scale);
            spoil_grad(result);
            return result;
          });
    });
  };
  const auto right = [](auto&) {};
  EXPECT_EQ(num_failed(with(right, right)), 0u);
  EXPECT_EQ(num_failed(with([](auto& r) { r.out = r.out.roll(1, -1); }, right)), 6u);
  EXPECT_EQ(num_failed(with([](auto& r) { r.out[0][0][0][0] = kNaN; }, right)), 6u);
  EXPECT_EQ(num_failed(with([](auto& r) { r.mass = r.mass * 1.5; }, right)), 6u);
  EXPECT_EQ(num_failed(with(right, [](auto& r) { r.v = r.v * 1.5; })), 6u);
  EXPECT_EQ(num_failed(with(right, [](auto& r) { r.q = -r.q; })),
            4u);  // one key alone: no gradient
  EXPECT_EQ(num_failed(with(right, [](auto& r) { r.k = r.k.roll(1, 2); })), 4u);
}

// --- The checks by themselves, by hand.
TEST(Checks, ValuesAreWithinTheirBoundsAndFiniteWhereExpected) {
  const auto expected = at::tensor({1.0, -kInfinity, 0.0, kNaN}, at::kDouble);
  const auto bound = at::tensor({0.5, 0.5, 0.0, 0.5}, at::kDouble);
  const auto check = [&](std::vector<double> found) {
    return check_values("x", at::tensor(found, at::kDouble), expected, bound);
  };
  EXPECT_EQ(check({1.25, -kInfinity, 0, kNaN}).failure, "");
  EXPECT_DOUBLE_EQ(check({1.25, -kInfinity, 0, kNaN}).worst, 0.5);
  EXPECT_EQ(check({2, -kInfinity, 0, kNaN}).failure, "x at [0]: expected 1 within 0.5, found 2");
  EXPECT_THAT(check({kNaN, -kInfinity, 0, kNaN}).failure, HasSubstr("x at [0]"));
  EXPECT_THAT(check({1, 0, 0, kNaN}).failure, HasSubstr("x at [1]"));
  EXPECT_THAT(check({1, kInfinity, 0, kNaN}).failure, HasSubstr("x at [1]"));
  EXPECT_THAT(check({1, -kInfinity, 1e-300, kNaN}).failure, HasSubstr("x at [2]"));
  EXPECT_THAT(check({1, -kInfinity, kInfinity, kNaN}).failure, HasSubstr("x at [2]"));
  EXPECT_THAT(check({1, -kInfinity, 0, 0}).failure, HasSubstr("x at [3]"));
}

TEST(Checks, ASelectionMayNotLeaveOutABetterKey) {
  const auto start = at::tensor({1}, at::kInt), end = at::tensor({5}, at::kInt);
  const auto scores = at::tensor({9.0, 1.0, 3.0, 2.0, 2.1, 9.0}, at::kDouble).view({1, 6});
  const auto check = [&](std::vector<int> set, double bound) {
    return check_selection(at::tensor(set, at::kInt).unsqueeze(0), start, end, scores,
                           at::full({1, 6}, bound, at::kDouble))
        .failure;
  };
  EXPECT_EQ(check({1, 3}, 0), "");
  EXPECT_EQ(check({1, 2}, 0.06), "");  // 2.0 for 2.1: within the two bounds
  EXPECT_THAT(check({1, 2}, 0.04), HasSubstr("left out"));
  EXPECT_THAT(check({0, 1}, 0.04), HasSubstr("left out"));
  EXPECT_THAT(check({3, 1}, 0), HasSubstr("entry 1: expected ascending"));
  EXPECT_THAT(check({1, 1}, 0), HasSubstr("entry 1: expected ascending"));
  EXPECT_THAT(check({1, 4}, 0), HasSubstr("entry 1: expected ascending indices below 4"));
  EXPECT_THAT(check({1, -1}, 0), HasSubstr("entry 1"));
  EXPECT_EQ(check({0, 1, 2, 3, -1}, 0), "");
  EXPECT_THAT(check({0, 1, 2, 3, 4}, 0), HasSubstr("entry 4: expected -1"));
}

TEST(Checks, EqualMeansEveryElement) {
  const auto expected = at::tensor({1, 2, 3, 4, 5, 6}, at::kInt).view({2, 3});
  EXPECT_EQ(check_equal(expected.clone(), expected).failure, "");
  auto other = expected.clone();
  other[1][2] = 7;
  EXPECT_EQ(check_equal(other, expected).failure, "at [1, 2]: expected 6, found 7");
}

TEST(Checks, SameBitsSeesTheSignOfZero) {
  const auto zero = at::zeros({2}, at::kFloat);
  EXPECT_EQ(check_same_bits(zero, zero.clone()).failure, "");
  EXPECT_NE(check_same_bits(zero, -zero).failure, "");
}

}  // namespace
}  // namespace indexcache
