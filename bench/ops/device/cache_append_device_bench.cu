// The kernels that fill caches (index_q, index_k_append, latent_append) beside the copy rate of the same
// run: bytes are those that must be read and written once. Prefill sizes are single calls on cold data,
// decode sizes a graph of calls, each on data of its own.
#include "device_harness.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/index_k_append/index_k_append_params.h"
#include "indexcache/ops/index_q/index_q_params.h"
#include "indexcache/ops/latent_append/latent_append_params.h"

namespace {

using namespace indexcache;
using namespace indexcache::bench;

constexpr std::int64_t kPositions = 200000, kCalls = 40;
constexpr IndexKeyType kPlain{RopeStyle::kInterleaved, Hadamard::kNone, ScaleFormat::kFloat32};
constexpr IndexKeyType kFull{RopeStyle::kHalfSplit, Hadamard::kNormalised,
                             ScaleFormat::kPowerOfTwo};

// Slots of neighbouring tokens: whole pages of 64 in a shuffled order, as a cache hands them out.
std::vector<std::int64_t> paged_slots(std::int64_t tokens) {
  const std::int64_t pages = tokens / 64;
  std::vector<std::int64_t> slots(tokens);
  for (std::int64_t i = 0; i < tokens; ++i) slots[i] = i / 64 * 40503 % pages * 64 + i % 64;
  return slots;
}

RopeRows rope_rows(std::int64_t tokens) {
  static const auto* table = reinterpret_cast<float*>(random_values(kPositions * 64 * 4));
  std::vector<std::int64_t> positions(tokens);
  for (std::int64_t i = 0; i < tokens; ++i) positions[i] = i % kPositions;
  return {table, kPositions, to_device(positions)};
}

std::string size_name(std::int64_t tokens) { return std::to_string(tokens) + " tokens"; }

DeviceCase index_q_case(std::int64_t tokens, std::int64_t heads, const IndexKeyType& type,
                        std::int64_t calls) {
  const std::int64_t rows = tokens * heads * calls;
  IndexQParams p{.num_tokens = tokens,
                 .num_heads = heads,
                 .dtype = IndexRowDType::kBFloat16,
                 .q = random_values(rows * 256),
                 .weights = reinterpret_cast<float*>(random_values(rows * 4)),
                 .rope = rope_rows(tokens),
                 .type = type,
                 .out = device_memory<std::uint8_t>(rows * 128),
                 .out_weights = device_memory<float>(rows)};
  const auto run = [=](cudaStream_t stream) {
    for (std::int64_t i = 0; i < calls; ++i) {
      IndexQParams call = p;
      call.q = static_cast<const char*>(p.q) + i * tokens * heads * 256;
      call.weights += i * tokens * heads, call.out += i * tokens * heads * 128;
      call.out_weights += i * tokens * heads;
      index_q_cuda(call, stream);
    }
  };
  return {"index_q " + size_name(tokens) + " H " + std::to_string(heads) + " " +
              print_index_key_type(type),
          0, static_cast<double>(tokens) * (heads * (256 + 128 + 8) + 8 + 256), run,
          static_cast<int>(calls)};
}

DeviceCase index_k_case(std::int64_t tokens, const IndexKeyType& type, std::int64_t calls) {
  const std::int64_t all = tokens * calls, pages = (all + kIndexPageKeys - 1) / kIndexPageKeys;
  IndexKAppendParams p{.num_tokens = tokens,
                       .dtype = IndexRowDType::kBFloat16,
                       .keys = random_values(all * 256),
                       .rope = rope_rows(tokens),
                       .slots = to_device(paged_slots(all)),
                       .type = type,
                       .pages = device_memory<std::uint8_t>(pages * kIndexPageBytes),
                       .num_pages = pages,
                       .page_stride = kIndexPageBytes};
  const auto run = [=](cudaStream_t stream) {
    for (std::int64_t i = 0; i < calls; ++i) {
      IndexKAppendParams call = p;
      call.keys = static_cast<const char*>(p.keys) + i * tokens * 256;
      call.slots += i * tokens;
      index_k_append_cuda(call, stream);
    }
  };
  return {"index_k_append " + size_name(tokens) + " " + print_index_key_type(type), 0,
          static_cast<double>(tokens) * (256 + 132 + 16 + 256), run, static_cast<int>(calls)};
}

DeviceCase latent_case(std::int64_t tokens, LatentFormat format, std::int64_t calls) {
  const std::int64_t all = tokens * calls, row = latent_row_bytes(format);
  LatentAppendParams p{.num_tokens = tokens,
                       .latents = random_values(all * 1024),
                       .latent_stride = kLatentDim,
                       .rope_keys = random_values(all * 128),
                       .rope_stride = kRopeDim,
                       .slots = to_device(paged_slots(all)),
                       .format = format,
                       .pages = device_memory<std::uint8_t>(all * row),
                       .num_pages = all / 64,
                       .page_keys = 64,
                       .page_stride = 64 * row,
                       .row_stride = row};
  const auto run = [=](cudaStream_t stream) {
    for (std::int64_t i = 0; i < calls; ++i) {
      LatentAppendParams call = p;
      call.latents = static_cast<const char*>(p.latents) + i * tokens * 1024;
      call.rope_keys = static_cast<const char*>(p.rope_keys) + i * tokens * 128;
      call.slots += i * tokens;
      latent_append_cuda(call, stream);
    }
  };
  return {std::string("latent_append ") + (format == LatentFormat::kBFloat16 ? "bf16 " : "e4m3 ") +
              size_name(tokens),
          0, static_cast<double>(tokens) * (1152 + 8 + row), run, static_cast<int>(calls)};
}

}  // namespace

int main(int argc, char** argv) {
  DeviceSuite suite("cache_append", argc, argv);
  for (const std::int64_t tokens : {16384, 64}) {
    const std::int64_t calls = tokens == 64 ? kCalls : 1;
    for (const std::int64_t heads : {32, 64}) {
      suite.add(index_q_case(tokens, heads, kPlain, calls));
      suite.add(index_q_case(tokens, heads, kFull, calls));
    }
  }
  for (const std::int64_t tokens : {131072, 16384, 64}) {
    const std::int64_t calls = tokens == 64 ? kCalls : 1;
    suite.add(index_k_case(tokens, kPlain, calls));
    suite.add(index_k_case(tokens, kFull, calls));
    suite.add(latent_case(tokens, LatentFormat::kBFloat16, calls));
    suite.add(latent_case(tokens, LatentFormat::kE4M3, calls));
  }
  suite.run();
}
