// The kernels that fill fp8 and bf16 caches (index_q, index_k_append, latent_append) on a GPU: the same
// bytes as their CPU versions, which the op tests hold to the definitions.
#include "indexcache/kernels/index_key_type.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/index_k_append/index_k_append_params.h"
#include "indexcache/ops/index_q/index_q_params.h"
#include "indexcache/ops/latent_append/latent_append_params.h"
#include "support/cache_inputs.h"
#include "support/device_check.h"

namespace indexcache::testing {
namespace {

constexpr std::int64_t kPositions = 97;

template <typename T>
void expect_same(const std::vector<T>& found, const std::vector<T>& expected,
                 const std::string& name) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::memcmp(&found[i], &expected[i], sizeof(T)) == 0) continue;
    expect(false, name + ": element " + std::to_string(i) + " is " +
                      std::to_string(static_cast<double>(found[i])) + ", expected " +
                      std::to_string(static_cast<double>(expected[i])));
    return;
  }
}

std::vector<std::uint16_t> all_to_bf16(const std::vector<float>& values) {
  std::vector<std::uint16_t> bits;
  for (const float value : values) bits.push_back(to_bf16(value));
  return bits;
}

// Rows as fp32 or bf16 on the host and on the device.
struct Rows {
  Rows(const std::vector<float>& values, IndexRowDType type)
      : dtype(type),
        full(values),
        half(all_to_bf16(values)),
        device_full(full),
        device_half(half) {}
  const void* host() const {
    return dtype == IndexRowDType::kFloat32 ? static_cast<const void*>(full.data()) : half.data();
  }
  const void* device() const {
    return dtype == IndexRowDType::kFloat32 ? static_cast<const void*>(device_full.data())
                                            : device_half.data();
  }
  IndexRowDType dtype;
  std::vector<float> full;
  std::vector<std::uint16_t> half;
  DeviceArray<float> device_full;
  DeviceArray<std::uint16_t> device_half;
};

// Positions in any order, one of them beyond the table.
std::vector<std::int64_t> some_positions(std::int64_t tokens, std::mt19937& random) {
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < tokens; ++t) positions.push_back(random() % kPositions);
  if (tokens > 5) positions[5] = kPositions;
  if (tokens > 6) positions[6] = -1;
  return positions;
}

// Distinct slots in any order, some -1 and one beyond the pages.
std::vector<std::int64_t> some_slots(std::int64_t tokens, std::int64_t num_slots,
                                     std::mt19937& random) {
  std::vector<std::int64_t> slots(num_slots);
  for (std::int64_t i = 0; i < num_slots; ++i) slots[i] = i;
  std::shuffle(slots.begin(), slots.end(), random);
  slots.resize(tokens);
  if (tokens > 3) slots[3] = -1;
  if (tokens > 4) slots[4] = num_slots;
  return slots;
}

std::string text(const IndexKeyType& type, IndexRowDType dtype, Values kind) {
  return std::string(dtype == IndexRowDType::kFloat32 ? " fp32 " : " bf16 ") +
         print_index_key_type(type) + " values " + std::to_string(static_cast<int>(kind));
}

void test_index_q(std::int64_t tokens, std::int64_t heads, IndexRowDType dtype, Values kind,
                  const IndexKeyType& type) {
  std::mt19937 random(tokens * 100 + heads);
  const std::string name = "index_q M " + std::to_string(tokens) + " H " + std::to_string(heads) +
                           text(type, dtype, kind);
  const Rows q(cache_values(kind, tokens * heads, kIndexDim, random), dtype);
  const auto weights = cache_values(Values::kNormal, tokens * heads, 1, random);
  const auto table = angle_table(kind, kPositions);
  const auto positions = some_positions(tokens, random);
  std::vector<std::uint8_t> bytes(tokens * heads * kIndexDim);
  std::vector<float> scaled(tokens * heads);
  IndexQParams p{.num_tokens = tokens,
                 .num_heads = heads,
                 .dtype = dtype,
                 .q = q.host(),
                 .weights = weights.data(),
                 .rope = {table.data(), kPositions, positions.data()},
                 .type = type,
                 .factor = 0.0123f,
                 .out = bytes.data(),
                 .out_weights = scaled.data()};
  index_q_cpu(p, {});
  const DeviceArray<float> device_weights(weights), device_table(table);
  const DeviceArray<std::int64_t> device_positions(positions);
  p.q = q.device(), p.weights = device_weights.data();
  p.rope = {device_table.data(), kPositions, device_positions.data()};
  for (int launch = 0; launch < 3; ++launch) {
    const DeviceArray<std::uint8_t> out(bytes.size());
    const DeviceArray<float> out_weights(scaled.size());
    p.out = out.data(), p.out_weights = out_weights.data();
    index_q_cuda(p, nullptr);
    finish_device(name);
    expect_same(out.copy(), bytes, name);
    expect_same(out_weights.copy(), scaled, name + " weights");
  }
}

void test_index_k_append(std::int64_t tokens, IndexRowDType dtype, Values kind,
                         const IndexKeyType& type) {
  std::mt19937 random(tokens);
  const std::string name = "index_k_append M " + std::to_string(tokens) + text(type, dtype, kind);
  const std::int64_t pages = tokens / 50 + 2, stride = kIndexPageBytes + 32;
  const Rows keys(cache_values(kind, tokens, kIndexDim, random), dtype);
  const auto table = angle_table(kind, kPositions);
  const auto positions = some_positions(tokens, random);
  const auto slots = some_slots(tokens, pages * kIndexPageKeys, random);
  std::vector<std::uint8_t> cache(pages * stride, 0xA5);  // as device arrays begin
  IndexKAppendParams p{.num_tokens = tokens,
                       .dtype = dtype,
                       .keys = keys.host(),
                       .rope = {table.data(), kPositions, positions.data()},
                       .slots = slots.data(),
                       .type = type,
                       .pages = cache.data(),
                       .num_pages = pages,
                       .page_stride = stride};
  index_k_append_cpu(p, {});
  const DeviceArray<float> device_table(table);
  const DeviceArray<std::int64_t> device_positions(positions), device_slots(slots);
  const DeviceArray<std::uint8_t> device_cache(cache.size());
  p.keys = keys.device(), p.slots = device_slots.data(), p.pages = device_cache.data();
  p.rope = {device_table.data(), kPositions, device_positions.data()};
  for (int launch = 0; launch < 3; ++launch) {
    index_k_append_cuda(p, nullptr);
    finish_device(name);
    expect_same(device_cache.copy(), cache, name);
  }
}

void test_latent_append(std::int64_t tokens, LatentFormat format, Values kind, ScaleFormat scale) {
  std::mt19937 random(tokens + 7);
  const std::string name =
      std::string("latent_append ") + (format == LatentFormat::kBFloat16 ? "bf16" : "e4m3") +
      " M " + std::to_string(tokens) + " values " + std::to_string(static_cast<int>(kind)) +
      " scale " + std::to_string(static_cast<int>(scale));
  const std::int64_t page_keys = 16, pages = tokens / 12 + 2;
  const std::int64_t row_stride = latent_row_bytes(format) + 16,
                     stride = page_keys * row_stride + 48;
  const auto latents = all_to_bf16(cache_values(kind, tokens, 520, random));  // of rows 520 wide
  const auto rope_keys = all_to_bf16(cache_values(kind, tokens, kRopeDim, random));
  const auto slots = some_slots(tokens, pages * page_keys, random);
  std::vector<std::uint8_t> cache(pages * stride, 0xA5);
  LatentAppendParams p{.num_tokens = tokens,
                       .latents = latents.data(),
                       .latent_stride = 520,
                       .rope_keys = rope_keys.data(),
                       .rope_stride = kRopeDim,
                       .slots = slots.data(),
                       .format = format,
                       .scale = scale,
                       .pages = cache.data(),
                       .num_pages = pages,
                       .page_keys = page_keys,
                       .page_stride = stride,
                       .row_stride = row_stride};
  latent_append_cpu(p, {});
  const DeviceArray<std::uint16_t> device_latents(latents), device_rope_keys(rope_keys);
  const DeviceArray<std::int64_t> device_slots(slots);
  const DeviceArray<std::uint8_t> device_cache(cache.size());
  p.latents = device_latents.data(), p.rope_keys = device_rope_keys.data();
  p.slots = device_slots.data(), p.pages = device_cache.data();
  for (int launch = 0; launch < 3; ++launch) {
    latent_append_cuda(p, nullptr);
    finish_device(name);
    expect_same(device_cache.copy(), cache, name);
  }
}

// A page beyond 4 GiB.
void test_far_page() {
  const std::int64_t stride = std::int64_t{1} << 31, pages = 4;
  std::mt19937 random(3);
  const Rows keys(cache_values(Values::kNormal, 1, kIndexDim, random), IndexRowDType::kBFloat16);
  const auto table = angle_table(Values::kNormal, 1);
  const DeviceArray<float> device_table(table);
  const DeviceArray<std::int64_t> position(std::vector<std::int64_t>{0}),
      slot(std::vector<std::int64_t>{3 * kIndexPageKeys + 63});
  const DeviceArray<std::uint8_t> cache(3 * stride + kIndexPageBytes);
  const std::int64_t zero = 0;
  std::vector<std::uint8_t> expected(kIndexPageBytes, 0xA5);
  const std::int64_t host_slot = 63;
  IndexKAppendParams p{.num_tokens = 1,
                       .dtype = keys.dtype,
                       .keys = keys.host(),
                       .rope = {table.data(), 1, &zero},
                       .slots = &host_slot,
                       .type = {},
                       .pages = expected.data(),
                       .num_pages = 1,
                       .page_stride = stride};
  index_k_append_cpu(p, {});
  p.keys = keys.device(), p.slots = slot.data(), p.pages = cache.data(), p.num_pages = pages;
  p.rope = {device_table.data(), 1, position.data()};
  index_k_append_cuda(p, nullptr);
  finish_device("far page");
  std::vector<std::uint8_t> found(kIndexPageBytes);
  require_cuda(
      cudaMemcpy(found.data(), cache.data() + 3 * stride, found.size(), cudaMemcpyDeviceToHost),
      "far page");
  expect_same(found, expected, "a page beyond 4 GiB");
}

void test_all() {
  for (const Values kind : {Values::kExact, Values::kNormal, Values::kHostile}) {
    for (const IndexRowDType dtype : {IndexRowDType::kFloat32, IndexRowDType::kBFloat16}) {
      for (const IndexKeyType& type : index_key_types()) {
        test_index_q(11, 5, dtype, kind, type);
        test_index_k_append(23, dtype, kind, type);
      }
      const IndexKeyType type{RopeStyle::kHalfSplit, Hadamard::kNormalised,
                              ScaleFormat::kPowerOfTwo};
      for (const std::int64_t tokens : {0, 1, 7, 300}) {
        for (const std::int64_t heads : {1, 3, 32, 64})
          test_index_q(tokens, heads, dtype, kind, type);
        test_index_k_append(tokens, dtype, kind, type);
      }
    }
    for (const std::int64_t tokens : {0, 1, 9, 300}) {
      test_latent_append(tokens, LatentFormat::kBFloat16, kind, ScaleFormat::kBFloat16);
      for (const ScaleFormat scale :
           {ScaleFormat::kFloat32, ScaleFormat::kBFloat16, ScaleFormat::kPowerOfTwo}) {
        test_latent_append(tokens, LatentFormat::kE4M3, kind, scale);
      }
    }
  }
}

}  // namespace
}  // namespace indexcache::testing

// usage: cache_append_device_test [--small]: without the page beyond 4 GiB
int main(int argc, char**) {
  using namespace indexcache::testing;
  if (!find_device()) return kNoDevice;
  test_all();
  if (argc == 1) test_far_page();
  return device_result("cache_append_device_test");
}
