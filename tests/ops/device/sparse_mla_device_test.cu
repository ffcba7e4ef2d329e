// sparse_mla's Hopper kernels against the double reference, on a GPU.
#include <cstdio>

#include "support/device_check.h"
#include "support/latent_batch.h"

namespace indexcache::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(),
                kInf = std::numeric_limits<float>::infinity();

// Runs `launches` times into the same outputs, all of whose results must be the same bits.
Result run(const LatentProblem& p, int launches = 1) {
  Batch batch({p});
  Result first;
  for (int launch = 0; launch < launches; ++launch) {
    batch.launch(nullptr);
    finish_device(p.name);
    const Result result = batch.result();
    if (launch == 0) first = result;
    expect(same(result, first), p.name + ": launch " + std::to_string(launch) + " gave other bits");
  }
  return first;
}

bool near(double found, double expected, double bound) {
  if (std::isnan(expected)) return std::isnan(found);
  if (std::isnan(found)) return false;
  if (std::isinf(expected)) return found == expected;
  return !(std::abs(found - expected) >
           bound);  // a bound of NaN: beside a value that is not finite
}

// Counts what is off, and shows the first of it: where, found, expected, and in how many rows of
// each tile column block.
void compare(const LatentProblem& p, const Result& result, const Reference& r) {
  std::int64_t off_lse = 0, off_left = 0, off_right = 0, first = -1;
  double worst = 0;
  for (std::size_t i = 0; i < r.lse.size(); ++i) {
    if (near(result.lse[i], r.lse[i], r.lse_bound[i])) continue;
    if (off_lse++ == 0) {
      std::printf("  %s: lse of row %zu: %g, expected %g +- %g\n", p.name.c_str(), i, result.lse[i],
                  r.lse[i], r.lse_bound[i]);
    }
  }
  for (std::size_t i = 0; i < r.out.size(); ++i) {
    const double found = from_bf16(result.out[i]);
    if (near(found, r.out[i], r.out_bound[i])) {
      if (r.out_bound[i] > 0) worst = std::max(worst, std::abs(found - r.out[i]) / r.out_bound[i]);
      continue;
    }
    (i % kLatentDim < 256 ? off_left : off_right)++;
    if (first < 0) {
      first = static_cast<std::int64_t>(i);
      std::printf("  %s: out of row %zu column %zu: %g, expected %g +- %g\n", p.name.c_str(),
                  i / kLatentDim, i % kLatentDim, found, r.out[i], r.out_bound[i]);
    }
  }
  const bool good = off_lse + off_left + off_right == 0;
  std::printf("%s %s: worst out error %.2f of the bound\n", good ? "ok" : "--", p.name.c_str(),
              worst);
  expect(good, p.name + ": off: " + std::to_string(off_lse) + " of " +
                   std::to_string(r.lse.size()) + " lse, " + std::to_string(off_left) +
                   " left and " + std::to_string(off_right) + " right of " +
                   std::to_string(r.out.size()) + " values");
}

std::string describe(const LatentProblem& p) {
  return std::string(p.kind == EntryKind::kUnion ? "union" : "indices") +
         (p.format == LatentFormat::kE4M3 ? " e4m3" : " bf16") +
         (p.split == EntrySplit::kCluster ? " cluster" : " whole") +
         (p.page_shift < 31 ? " paged" : "") + " M " + std::to_string(p.queries) + " h " +
         std::to_string(p.heads) + " N " + std::to_string(p.keys) + " k " + std::to_string(p.top_k);
}

template <typename Check>
void for_each_path(const Check& check) {
  for (const EntryKind kind : {EntryKind::kIndices, EntryKind::kUnion}) {
    for (const LatentFormat format : {LatentFormat::kBFloat16, LatentFormat::kE4M3}) {
      for (const EntrySplit split : {EntrySplit::kWhole, EntrySplit::kCluster}) {
        LatentProblem p;
        p.kind = kind;
        p.format = format;
        p.split = split;
        check(p);
      }
    }
  }
}

void test_accuracy() {
  struct Shape {
    std::int64_t queries, heads, keys, top_k;
    int page_shift;
  };
  const Shape shapes[] = {{1, 20, 64, 64, 31},  {4, 20, 300, 130, 31}, {7, 16, 200, 193, 6},
                          {1, 1, 1, 1, 31},     {5, 5, 90, 33, 3},     {3, 8, 700, 650, 31},
                          {2, 64, 500, 320, 6}, {3, 128, 150, 65, 31}, {2, 21, 40, 200, 4},
                          {4, 22, 100, 64, 31}};
  for_each_path([&](LatentProblem p) {
    for (const Shape& s : shapes) {
      p.queries = s.queries, p.heads = s.heads, p.keys = s.keys, p.top_k = s.top_k,
      p.page_shift = s.page_shift;
      p.first_position = s.queries % 3 + s.heads % 2;
      p.name = describe(p);
      const LatentProblem made = make_problem(p, static_cast<unsigned>(s.top_k + s.heads));
      compare(made, run(made), reference_of(made));
    }
  });
}

// The mean of the values where all logits are equal, and one value where one logit is far above:
// what is off, if anything?
void test_simple_weights() {
  LatentProblem p;
  p.queries = 1, p.heads = 64, p.keys = 64, p.top_k = 64, p.name = "mean of 64 keys";
  p = make_problem(p, 3);
  std::fill(p.q.begin(), p.q.end(), std::uint16_t{0});
  for (std::int32_t i = 0; i < 64; ++i) p.indices[i] = i;
  compare(p, run(p), reference_of(p));
  p.name = "key of each head";
  for (std::int64_t h = 0; h < 64; ++h) {
    for (std::int64_t d = 0; d < 576; ++d)
      p.q[h * 576 + d] =
          to_bf16(4 * from_bf16(reinterpret_cast<std::uint16_t*>(p.rows.data())[h * 576 + d]));
  }
  compare(p, run(p), reference_of(p));
}

void test_relaunches() {
  for_each_path([](LatentProblem p) {
    p.queries = 9, p.heads = 20, p.keys = 900, p.top_k = 500, p.first_position = 2;
    p.name = "20 launches, " + describe(p);
    run(make_problem(p, 31), 20);
  });
}

Result joined(const Result& a, Result b) {
  b.out.insert(b.out.begin(), a.out.begin(), a.out.end());
  b.lse.insert(b.lse.begin(), a.lse.begin(), a.lse.end());
  return b;
}

LatentProblem slice(const LatentProblem& p, std::int64_t begin, std::int64_t end) {
  LatentProblem part = p;
  part.queries = end - begin;
  part.first_position += begin;
  part.q.assign(p.q.begin() + begin * p.heads * 576, p.q.begin() + end * p.heads * 576);
  part.indices.assign(p.indices.begin() + begin * p.top_k, p.indices.begin() + end * p.top_k);
  return part;
}

// Queries alone (groups alone, for unions) give the bits that they give in company, and so does any
// place of the keys.
void test_chunks_and_places() {
  for_each_path([](LatentProblem p) {
    p.queries = 10, p.heads = 20, p.keys = 600, p.top_k = 300, p.first_position = 4;
    p.name = "chunks, " + describe(p);
    p = make_problem(p, 32);
    const Result whole = run(p);
    const std::vector<std::int32_t> cuts = p.kind == EntryKind::kUnion
                                               ? std::vector<std::int32_t>{0, 2, 8, 10}
                                               : std::vector<std::int32_t>{0, 1, 4, 10};
    Result parts;
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      parts = joined(parts, run(slice(p, cuts[i], cuts[i + 1])));
    }
    expect(same(parts, whole), p.name + ": other bits than the whole");
    for (const int shift : {0, 6}) {
      p.page_shift = shift;
      expect(same(run(p), whole), p.name + ": other bits in pages");
    }
  });
}

// Work that is cut, its sums going from CTA to CTA by the workspace, gives the bits of the whole: with
// sets of all lengths, those too short to be cut and values that are not finite among them.
void test_workspace() {
  int ctas = 0;
  require_cuda(cudaDeviceGetAttribute(&ctas, cudaDevAttrMultiProcessorCount, 0), "workspace");
  for_each_path([=](LatentProblem p) {
    if (p.split != EntrySplit::kWhole) return;
    for (const int rest : {1, ctas / 3, 2 * ctas / 5, 3 * ctas / 4}) {
      p.queries = (p.kind == EntryKind::kUnion ? kGroupQueries : 1) * (3 * ctas + rest);
      p.heads = 20, p.keys = 2400, p.top_k = 2048;  // room enough for entries to be cut
      p.name = "workspace, " + describe(p);
      p = make_problem(p, 41);
      for (std::int64_t t = 0; t < p.queries; ++t) {
        const std::int64_t kept = t % 4 != 0 ? p.top_k : t * 37 % p.top_k;
        std::fill(&p.indices[t * p.top_k] + kept, &p.indices[t * p.top_k] + p.top_k, -1);
      }
      for (int d = 0; d < 3; ++d) poison(p, 5 + d, 200 * d, d == 1 ? kInf : kNaN);
      Batch batch({p});
      batch.launch(nullptr);
      finish_device(p.name);
      const Result whole = batch.result();
      expect(batch.lend_workspace() > 0, p.name + ": nothing is cut");
      for (int launch = 0; launch < 3; ++launch) {
        batch.launch(nullptr);
        finish_device(p.name);
        expect(same(batch.result(), whole), p.name + ": other bits than without a workspace");
      }
    }
  });
}

// Short groups in so many rounds that they are dealt out by length give the bits that they give in launches of
// too few rounds for that: `rest` of them beyond four rounds, with sets of one length or of all, empty ones among
// them.
void test_lengths(int rest, bool equal, std::int64_t top_k) {
  int ctas = 0;
  require_cuda(cudaDeviceGetAttribute(&ctas, cudaDevAttrMultiProcessorCount, 0), "lengths");
  LatentProblem p;
  p.kind = EntryKind::kUnion;
  p.queries = kGroupQueries * (4 * ctas + rest % ctas);
  p.heads = 2, p.keys = 4 * top_k, p.top_k = top_k;
  p.name = std::string(equal ? "equal" : "all") + " lengths, " + describe(p);
  p = make_problem(p, 42);
  for (std::int64_t t = 0; !equal && t < p.queries; ++t) {
    const std::int64_t kept = t / kGroupQueries * 37 % p.top_k;
    std::fill(&p.indices[t * p.top_k] + kept, &p.indices[t * p.top_k] + p.top_k, -1);
  }
  Result parts;
  const std::int64_t step = kGroupQueries * ctas;
  for (std::int64_t begin = 0; begin < p.queries; begin += step)
    parts = joined(parts, run(slice(p, begin, std::min(p.queries, begin + step))));
  expect(same(run(p, 3), parts), p.name + ": other bits than in parts");
}

// Requests with caches and block tables of their own, in one launch and alone.
void test_requests() {
  for_each_path([](LatentProblem p) {
    p.queries = 4, p.heads = 20, p.keys = 130, p.top_k = 90, p.page_shift = 4;
    const LatentProblem a = make_problem(p, 37);
    p.first_position = 2;
    const LatentProblem b = make_problem(p, 38);
    Batch both({a, b});
    both.launch(nullptr);
    finish_device("requests");
    expect(same(both.result(), joined(run(a), run(b))),
           "requests, " + describe(p) + ": other bits than alone");
  });
}

// A captured launch, replayed over sets that change on the device, empty rows among them.
void test_graph() {
  for_each_path([](LatentProblem p) {
    p.queries = 5, p.heads = 20, p.keys = 130, p.top_k = 90, p.page_shift = 4;
    p = make_problem(p, 39);
    p.name = "graph, " + describe(p);
    Batch batch({p});
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    require_cuda(cudaStreamCreate(&stream), p.name);
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), p.name);
    batch.launch(stream);
    require_cuda(cudaStreamEndCapture(stream, &graph), p.name);
    require_cuda(cudaGraphInstantiate(&replay, graph, 0), p.name);
    for (const int emptied : {-1, 2, 0}) {
      if (emptied >= 0) std::fill_n(&p.indices[emptied * p.top_k], p.top_k, -1);
      require_cuda(cudaMemcpy(batch.indices().data(), p.indices.data(), p.indices.size() * 4,
                              cudaMemcpyHostToDevice),
                   p.name);
      require_cuda(cudaGraphLaunch(replay, stream), p.name);
      finish_device(p.name);
      expect(same(batch.result(), run(p)), p.name + ": other bits than a launch");
    }
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  });
}

// What a query did not select may hold anything; what it did select shows as the definition says.
void test_non_finite() {
  for_each_path([](LatentProblem p) {
    p.queries = 9, p.heads = 20, p.keys = 400, p.top_k = 150;
    p.name = "not finite, " + describe(p);
    p = make_problem(p, 33);
    std::vector<std::vector<int>> readers(p.keys);
    for (std::int64_t i = 0; i < p.queries * p.top_k; ++i) {
      if (p.indices[i] >= 0) readers[p.indices[i]].push_back(static_cast<int>(i / p.top_k));
    }
    // Queries 0 and 4 are hit; keys which no other query reads, and those nobody reads, are
    // spoiled.
    LatentProblem dirty = p;
    int hits = 0;
    for (std::int64_t s = 0; s < p.keys; ++s) {
      const bool others =
          std::any_of(readers[s].begin(), readers[s].end(), [](int t) { return t != 0 && t != 4; });
      if (others || (!readers[s].empty() && hits >= 12)) continue;
      hits += !readers[s].empty();
      const float values[] = {kNaN, kInf, -kInf};
      poison(dirty, s, s % 3 == 0 ? 17 : s % 3 == 1 ? 300 : 511, values[s / 3 % 3]);
      if (s % 5 == 0) poison(dirty, s, 540, kInf);
    }
    expect(hits > 2,
           p.name + ": expected keys of queries 0 and 4 alone, found " + std::to_string(hits));
    const Result clean = run(p), beside = run(dirty);
    const Reference r = reference_of(dirty);
    const std::int64_t width = p.heads * kLatentDim;
    for (std::int64_t t = 0; t < p.queries; ++t) {
      if (t == 0 || t == 4) continue;
      expect(std::memcmp(&clean.out[t * width], &beside.out[t * width], width * 2) == 0 &&
                 std::memcmp(&clean.lse[t * p.heads], &beside.lse[t * p.heads], p.heads * 4) == 0,
             p.name + ": query " + std::to_string(t) + " sees a neighbour's value");
    }
    compare(dirty, beside, r);
  });
}

// Every path once, on as little as reaches all of it: groups of one and of three, two pairs of tiles
// of which the last is half empty, pages, a value that is not finite.
void test_every_path() {
  for_each_path([](LatentProblem p) {
    p.queries = 4, p.heads = 20, p.keys = 150, p.top_k = 140, p.first_position = 2,
    p.page_shift = 4;
    p.name = "every path, " + describe(p);
    p = make_problem(p, 40);
    const std::int32_t spoiled =
        *std::find_if(p.indices.begin(), p.indices.end(), [](std::int32_t id) { return id >= 0; });
    for (const int d : {17, 300, 540}) poison(p, spoiled, d, d == 540 ? kInf : kNaN);
    compare(p, run(p), reference_of(p));
  });
}

void test_empty() {
  for_each_path([](LatentProblem p) {
    p.queries = 6, p.heads = 20, p.keys = 100, p.top_k = 70;
    p.name = "empty rows, " + describe(p);
    p = make_problem(p, 34);
    for (const int t : {1, 3, 4, 5}) std::fill_n(&p.indices[t * p.top_k], p.top_k, -1);
    const Result result = run(p);
    compare(p, result, reference_of(p));
    for (std::int64_t i = p.heads * kLatentDim; i < 2 * p.heads * kLatentDim; ++i) {
      if (result.out[i] != 0) return expect(false, p.name + ": an empty row is not 0");
    }
    for (std::int64_t i = p.heads; i < 2 * p.heads; ++i)
      expect(result.lse[i] == -kInf, p.name + ": lse of an empty row");
    p.top_k = 0;
    p.indices.clear();
    p.name += ", k 0";
    for (const float lse : run(p).lse) expect(lse == -kInf, p.name);
  });
}

// Logits far apart in either order of keys, which the running maximum has to follow.
void test_far_apart() {
  for_each_path([](LatentProblem p) {
    for (const bool rising : {false, true}) {
      p.queries = 2, p.heads = 20, p.keys = 500, p.top_k = 500, p.softmax_scale = 2;
      p.name = std::string(rising ? "rising" : "falling") + " logits, " + describe(p);
      LatentProblem made = make_problem(p, 35);
      for (std::int64_t h = 0; h < p.queries * p.heads; ++h) made.q[h * 576 + 575] = to_bf16(8);
      for (std::int32_t s = 0; s < 500; ++s) {
        made.indices[s] = made.indices[500 + s] = s;
        poison(made, s, 575, static_cast<float>(rising ? s : 500 - s) / 4);
      }
      compare(made, run(made), reference_of(made));
    }
  });
}

// A page more than 4 GiB into the cache.
void test_far_page() {
  LatentProblem p;
  p.queries = 2, p.heads = 8, p.keys = 128, p.top_k = 100, p.name = "page beyond 4 GiB";
  p = make_problem(p, 36);
  const Result expected = run(p);
  const std::int64_t stride = (std::int64_t{9} << 29) + 64;
  unsigned char* cache = nullptr;
  if (cudaMalloc(&cache, stride + 64 * p.row_bytes()) != cudaSuccess) {
    cudaGetLastError();
    return std::printf("not run: %s, too little memory\n", p.name.c_str()), void();
  }
  for (int page = 0; page < 2; ++page) {
    require_cuda(cudaMemcpy(cache + page * stride, &p.rows[page * 64 * p.row_bytes()],
                            64 * p.row_bytes(), cudaMemcpyHostToDevice),
                 p.name);
  }
  const DeviceArray<std::int32_t> indices(p.indices);
  const DeviceArray<std::uint16_t> q(p.q), out(p.queries * p.heads * kLatentDim);
  const DeviceArray<float> lse(p.queries * p.heads);
  sparse_mla_wgmma_cuda({.num_queries = 2,
                         .num_heads = 8,
                         .softmax_scale = p.softmax_scale,
                         .kv = {.data = cache,
                                .row_stride = p.row_bytes(),
                                .page_stride = stride,
                                .page_shift = 6,
                                .num_keys = 128},
                         .num_groups = 2,
                         .entries = indices.data(),
                         .entry_stride = p.top_k,
                         .q = q.data(),
                         .out = out.data(),
                         .lse = lse.data()},
                        nullptr);
  finish_device(p.name);
  expect(same({out.copy(), lse.copy()}, expected), p.name + ": other bits");
  cudaFree(cache);
}

}  // namespace
}  // namespace indexcache::testing

// With the argument "small" only what covers every path on tiny shapes: for compute-sanitizer.
int main(int argc, char**) {
  using namespace indexcache::testing;
  if (!find_device()) return kNoDevice;
  test_every_path();
  test_lengths(1, false, 30);
  if (argc == 1) {
    test_simple_weights();
    test_empty();
    test_accuracy();
    test_far_apart();
    test_chunks_and_places();
    test_workspace();
    for (const bool equal : {false, true})
      for (const int rest : {0, 1, 44, 131}) test_lengths(rest, equal, 130);
    test_requests();
    test_graph();
    test_relaunches();
    test_far_page();
    test_non_finite();
  }
  return device_result("sparse_mla");
}
