// latent_append: what sparse_mla's reader finds in the cache is what was appended.
#include "indexcache/ops/latent_append/latent_append.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include "indexcache/base/error.h"
#include "indexcache/ops/latent_append/latent_append_params.h"
#include "indexcache/ops/sparse_mla/latent_store.h"
#include "support/cache_inputs.h"
#include "support/e4m3_rows.h"
#include "support/op_inputs.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using testing::thrown;
using testing::Values;

constexpr std::int64_t kPageKeys = 4, kPages = 5;

struct Latents {
  std::vector<std::uint16_t> latents, rope_keys;
  std::vector<std::uint8_t> cache;
  LatentAppendParams params;
  LatentStore store;

  Latents(LatentFormat format, ScaleFormat scale, Values kind,
          const std::vector<std::int64_t>& slots) {
    std::mt19937 random(4);
    latents = testing::to_bf16(testing::cache_values(kind, slots.size(), kLatentDim, random));
    rope_keys = testing::to_bf16(testing::cache_values(kind, slots.size(), kRopeDim, random));
    const std::int64_t row = latent_row_bytes(format) + 16, page = kPageKeys * row + 32;
    cache.assign(kPages * page, 0xA5);
    params = {.num_tokens = static_cast<std::int64_t>(slots.size()),
              .latents = latents.data(),
              .latent_stride = kLatentDim,
              .rope_keys = rope_keys.data(),
              .rope_stride = kRopeDim,
              .slots = slots.data(),
              .format = format,
              .scale = scale,
              .pages = cache.data(),
              .num_pages = kPages,
              .page_keys = kPageKeys,
              .page_stride = page,
              .row_stride = row};
    latent_append_cpu(params, testing::threads(2));
    store = {.format = format,
             .data = cache.data(),
             .row_stride = row,
             .page_stride = page,
             .page_shift = 2,
             .num_keys = kPages * kPageKeys};
  }
};

TEST(LatentAppend, TheReaderFindsBf16RowsBitForBit) {
  const std::vector<std::int64_t> slots = {7, 0, -1, 19, 4, 20};
  for (const Values kind : {Values::kNormal, Values::kHostile}) {
    Latents in(LatentFormat::kBFloat16, ScaleFormat::kBFloat16, kind, slots);
    for (std::size_t t = 0; t < slots.size(); ++t) {
      float values[kLatentDim + kRopeDim];
      if (!read_latent(in.store, 0, slots[t], values)) continue;
      for (std::int64_t d = 0; d < kLatentDim + kRopeDim; ++d) {
        const std::uint16_t bits = d < kLatentDim ? in.latents[t * kLatentDim + d]
                                                  : in.rope_keys[t * kRopeDim + d - kLatentDim];
        ASSERT_EQ(std::bit_cast<std::uint32_t>(values[d]), std::uint32_t{bits} << 16);
      }
      std::fill_n(
          &in.cache[slots[t] / 4 * in.store.page_stride + slots[t] % 4 * in.store.row_stride], 1152,
          0xA5);
    }
    for (const std::uint8_t byte : in.cache) ASSERT_EQ(byte, 0xA5);
  }
}

TEST(LatentAppend, E4m3RowsAreWithinHalfAStepAndReadAsWritten) {
  std::vector<std::int64_t> slots = {-1};
  for (int t = 1; t < 20; ++t) slots.push_back(t * 3 % 20);
  for (const Values kind : {Values::kExact, Values::kNormal, Values::kHostile}) {
    for (const ScaleFormat format :
         {ScaleFormat::kFloat32, ScaleFormat::kBFloat16, ScaleFormat::kPowerOfTwo}) {
      Latents in(LatentFormat::kE4M3, format, kind, slots);
      std::vector<double> expected_scales(slots.size() * 4);
      latent_append_ref(in.params, expected_scales.data());
      for (std::size_t t = 1; t < slots.size(); ++t) {
        const std::uint8_t* row =
            &in.cache[slots[t] / 4 * in.store.page_stride + slots[t] % 4 * in.store.row_stride];
        float read[kLatentDim + kRopeDim];
        ASSERT_TRUE(read_latent(in.store, 0, slots[t], read));
        for (int block = 0; block < 4; ++block) {
          float scale;
          std::memcpy(&scale, row + kLatentDim + 4 * block, 4);
          std::vector<double> expected;
          for (int d = 0; d < 128; ++d) {
            expected.push_back(testing::from_bf16(in.latents[t * kLatentDim + block * 128 + d]));
          }
          SCOPED_TRACE(::testing::Message() << "token " << t << " block " << block);
          testing::expect_e4m3_block({row + block * 128, 128}, scale, expected, 0, format,
                                     kDefaultAmaxFloor);
          const double wanted = expected_scales[t * 4 + block];
          EXPECT_EQ(std::isnan(wanted), row[block * 128] == kE4m3NaN && scale == 1);
          EXPECT_FALSE(scale < wanted * (1 - testing::kHalfUlp));
          // Scales that bf16 holds: the reader's product is rounded once, to bf16.
          if (std::isnan(wanted) || format == ScaleFormat::kFloat32) continue;
          for (int d = 0; d < 128; ++d) {
            const double exact = e4m3_value(row[block * 128 + d]) * scale;
            ASSERT_EQ(read[block * 128 + d],
                      testing::from_bf16(testing::to_bf16(static_cast<float>(exact))));
          }
        }
        EXPECT_EQ(std::memcmp(row + kLatentDim + 16, &in.rope_keys[t * kRopeDim], 2 * kRopeDim), 0);
        EXPECT_EQ(row[656], 0xA5);
      }
    }
  }
}

struct Tensors {
  at::Tensor latents = at::randn({3, 512}).to(at::kBFloat16),
             rope_keys = at::randn({3, 64}).to(at::kBFloat16),
             slots = at::tensor({5, -1, 2}, at::kLong),
             pages = at::zeros({2, 4, 576}, at::kBFloat16);
  void append() const { latent_append(latents, rope_keys, slots, pages); }
};

TEST(LatentAppend, WritesTensorsInPlace) {
  Tensors in;
  in.append();
  EXPECT_TRUE(in.pages[1][1].narrow(0, 0, 512).equal(in.latents[0]));
  EXPECT_TRUE(in.pages[0][2].narrow(0, 512, 64).equal(in.rope_keys[2]));
  EXPECT_EQ(in.pages.ne(0).any(2).sum().item<int>(), 2);
  // Parts of wider rows.
  const auto joint = at::randn({3, 576}).to(at::kBFloat16);
  in.latents = joint.narrow(1, 0, 512), in.rope_keys = joint.narrow(1, 512, 64);
  in.append();
  EXPECT_TRUE(in.pages[1][1].equal(joint[0]));
  in.pages = at::zeros({2, 4, 656}, at::kByte);
  in.append();
  EXPECT_EQ(in.pages.ne(0).any(2).sum().item<int>(), 2);
}

TEST(LatentAppend, SaysWhatIsWrong) {
  const auto message = [](const std::function<void(Tensors&)>& spoil) {
    Tensors in;
    spoil(in);
    return thrown<InputError>([&] { in.append(); });
  };
  EXPECT_THAT(message([](Tensors& in) { in.slots[2] = 8; }), ::testing::EndsWith("to 7, found 8"));
  EXPECT_THAT(message([](Tensors& in) { in.pages = in.pages.to(at::kFloat); }),
              ::testing::StartsWith("latent_append: pages: expected bf16 [P, S, at least 576]"));
  EXPECT_THAT(message([](Tensors& in) {
                in.pages = at::zeros({2, 4, 640}, at::kByte);
              }),
              ::testing::StartsWith("latent_append: pages"));
  EXPECT_THAT(message([](Tensors& in) {
                in.latents = at::randn({3, 512});
              }),
              ::testing::StartsWith("latent_append: latents: expected bf16 [3, 512]"));
  EXPECT_THAT(message([](Tensors& in) { in.rope_keys = in.rope_keys.narrow(0, 0, 2); }),
              ::testing::StartsWith("latent_append: rope_keys: expected bf16 [3, 64]"));
}

}  // namespace
}  // namespace indexcache
