// index_k_append: bytes and scales against the definition, and where in the pages they go.
#include "indexcache/ops/index_k_append/index_k_append.h"

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>

#include "indexcache/base/error.h"
#include "indexcache/kernels/index_key_type.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/index_k_append/index_k_append_params.h"
#include "support/cache_inputs.h"
#include "support/e4m3_rows.h"
#include "support/op_inputs.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using testing::thrown;
using testing::Values;

constexpr std::int64_t kPages = 3, kStride = kIndexPageBytes + 48, kPositions = 50;

struct Appended {
  std::vector<std::uint8_t> cache;
  std::vector<double> expected;  // [tokens, 128]
};

Appended append(Values kind, IndexRowDType dtype, const IndexKeyType& type,
                const std::vector<float>& keys, const std::vector<std::int64_t>& slots) {
  const auto tokens = static_cast<std::int64_t>(slots.size());
  const auto half = testing::to_bf16(keys);
  const auto table = testing::angle_table(kind, kPositions);
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < tokens; ++t) positions.push_back(t * 7 % kPositions);
  Appended result{std::vector<std::uint8_t>(kPages * kStride, 0xA5),
                  std::vector<double>(tokens * kIndexDim)};
  const IndexKAppendParams p = {.num_tokens = tokens,
                                .dtype = dtype,
                                .keys = dtype == IndexRowDType::kFloat32
                                            ? static_cast<const void*>(keys.data())
                                            : half.data(),
                                .rope = {table.data(), kPositions, positions.data()},
                                .slots = slots.data(),
                                .type = type,
                                .pages = result.cache.data(),
                                .num_pages = kPages,
                                .page_stride = kStride};
  index_k_append_cpu(p, testing::threads(3));
  index_k_append_ref(p, result.expected.data());
  return result;
}

TEST(IndexKAppend, WritesEachKeyIntoItsSlotAndNothingElse) {
  const std::vector<std::int64_t> slots = {0, 63, 64, -1, 130, 2 * 64 + 63, 5, kPages * 64, -77};
  for (const Values kind : {Values::kExact, Values::kNormal}) {
    for (const IndexRowDType dtype : {IndexRowDType::kFloat32, IndexRowDType::kBFloat16}) {
      for (const IndexKeyType& type : index_key_types()) {
        std::mt19937 random(8);
        const auto keys = testing::cache_values(kind, slots.size(), kIndexDim, random);
        Appended found = append(kind, dtype, type, keys, slots);
        for (std::size_t t = 0; t < slots.size(); ++t) {
          if (slots[t] < 0 || slots[t] >= kPages * 64) continue;
          std::uint8_t* page = &found.cache[slots[t] / 64 * kStride];
          const std::int64_t row = slots[t] % 64;
          float scale;
          std::memcpy(&scale, page + 64 * 128 + 4 * row, 4);
          double size = 0;
          for (int d = 0; d < kIndexDim; ++d) size += std::abs(keys[t * kIndexDim + d]);
          const bool plain = type.hadamard == Hadamard::kNone;
          const bool exact = kind == Values::kExact && plain;
          SCOPED_TRACE(::testing::Message() << print_index_key_type(type) << " key " << t);
          testing::expect_e4m3_block(
              {page + row * 128, 128}, scale, {&found.expected[t * kIndexDim], 128},
              exact ? 0 : 16 * testing::kHalfUlp * (plain ? 1 : 0.0884) * size, type.scale,
              kDefaultAmaxFloor);
          std::fill_n(page + row * 128, 128, 0xA5);
          std::fill_n(page + 64 * 128 + 4 * row, 4, 0xA5);
        }
        for (const std::uint8_t byte : found.cache) ASSERT_EQ(byte, 0xA5);
      }
    }
  }
}

TEST(IndexKAppend, HostileRowsAreDefined) {
  std::mt19937 random(9);
  std::vector<std::int64_t> slots;
  for (int t = 0; t < 35; ++t) slots.push_back(t);
  const auto keys = testing::cache_values(Values::kHostile, slots.size(), kIndexDim, random);
  for (const IndexKeyType& type : index_key_types()) {
    const Appended found = append(Values::kNormal, IndexRowDType::kFloat32, type, keys, slots);
    for (std::size_t t = 0; t < slots.size(); ++t) {
      if (t % 7 == 3) continue;  // may overflow on the way
      float scale;
      std::memcpy(&scale, &found.cache[64 * 128 + 4 * t], 4);
      double size = 0;
      for (int d = 0; d < kIndexDim; ++d) size += std::abs(keys[t * kIndexDim + d]);
      SCOPED_TRACE(::testing::Message() << print_index_key_type(type) << " key " << t);
      testing::expect_e4m3_block({&found.cache[t * 128], 128}, scale,
                                 {&found.expected[t * kIndexDim], 128},
                                 16 * testing::kHalfUlp * size, type.scale, kDefaultAmaxFloor);
    }
  }
}

struct Tensors {
  at::Tensor keys = at::randn({4, 128}), cos_sin = at::ones({9, 64}),
             positions = at::tensor({0, 8, 3, 1}, at::kLong),
             slots = at::tensor({5, 64, -1, 127}, at::kLong),
             pages = at::full({2, kIndexPageBytes}, 0xA5, at::kByte);
};

TEST(IndexKAppend, WritesTheTensorInPlace) {
  Tensors in;
  index_k_append(in.keys, in.cos_sin, in.positions, in.slots, {in.pages, {}});
  EXPECT_EQ(in.pages.ne(0xA5).narrow(1, 0, 64 * 128).view({2, 64, 128}).any(2).nonzero().size(0),
            3);
  index_k_append(in.keys.to(at::kBFloat16), in.cos_sin, in.positions, in.slots, {in.pages, {}});
}

TEST(IndexKAppend, SaysWhatIsWrong) {
  const auto message = [](const std::function<void(Tensors&)>& spoil) {
    Tensors in;
    spoil(in);
    return thrown<InputError>([&] {
      index_k_append(in.keys, in.cos_sin, in.positions, in.slots, {in.pages, {}});
    });
  };
  EXPECT_THAT(message([](Tensors& in) { in.slots[1] = 128; }),
              ::testing::EndsWith(" to 127, found 128"));
  EXPECT_THAT(message([](Tensors& in) { in.slots = at::tensor({1}, at::kLong); }),
              ::testing::StartsWith("index_k_append: slots: expected contiguous int64 [4]"));
  EXPECT_EQ(message([](Tensors& in) { in.positions[3] = 9; }),
            "index_k_append: positions[3]: expected 0 to 8, found 9");
  EXPECT_THAT(message([](Tensors& in) { in.pages = in.pages.narrow(1, 0, 8000); }),
              ::testing::StartsWith("index_k_append: pages: expected uint8 [P, at least 8448]"));
  EXPECT_THAT(message([](Tensors& in) { in.keys = in.keys.t(); }),
              ::testing::StartsWith("index_k_append: keys: expected [M, 128]"));
}

}  // namespace
}  // namespace indexcache
