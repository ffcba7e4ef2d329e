// sparse_mla on the CPU: a query against segments of kSegment of its kv rows.
//
// A segment is computed whole: logits of all heads (heads x 128 x dim), softmax relative to the
// segment's own maximum, weighted values (heads x value_dim x 128), so its rows are gathered from
// memory once and read from L2 after that. Segments are merged in order. A query's segments and their
// merging depend on its valid entries alone, so the bits are the same whether one worker does the
// whole query or several share its segments, as they do when there are few queries.
//
// Rows are read where they lie when their dtype and length suit the kernel; else they are copied,
// widened or padded with zeros, a segment at a time.
//
// Per query and entry: 2 heads (dim + value_dim) flops, dim elements from memory.
#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "indexcache/ops/sparse_mla/sparse_mla_kernels.h"

namespace indexcache {
namespace {

constexpr std::int64_t kItemsPerWorker = 4;  // fewer queries than that a worker: share segments

using Floats = hwy::AlignedFreeUniquePtr<float[]>;
using Bytes = hwy::AlignedFreeUniquePtr<std::uint8_t[]>;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
std::int64_t element_size(SparseMlaDType dtype) {
  return dtype == SparseMlaDType::kFloat32 ? 4 : 2;
}

AttentionKernel choose_kernel(SparseMlaDType dtype) {
  if (dtype == SparseMlaDType::kBFloat16) {
    const AttentionKernel kernel = avx512_bf16_attention_kernel();
    if (kernel.row_multiple != 0) return kernel;
  }
  return highway_attention_kernel();
}

struct Layout {
  AttentionKernel kernel;
  std::int64_t dim;     // elements of a row as the kernel sees it
  std::int64_t stride;  // floats of one head's values
  bool in_place;        // rows of the caller suit the kernel

  explicit Layout(const SparseMlaParams& p)
      : kernel(choose_kernel(p.dtype)),
        dim(round_up(p.dim, kernel.row_multiple)),
        stride(round_up(p.value_dim, kernel.row_multiple)),
        in_place(kernel.row_dtype == p.dtype && dim == p.dim) {}
};

// The state of a softmax over the entries seen so far, for every head: the weighted values relative
// to exp(max), and the sum of the weights.
struct Partial {
  std::vector<float> max, sum;
  Floats values;  // [heads, stride]

  Partial(std::int64_t heads, std::int64_t stride)
      : max(heads), sum(heads), values(hwy::AllocateAligned<float>(heads * stride)) {}
};

// exp(max - total), where nothing but -inf has been seen 0.
float rescale(float max, float total) {
  return max == -std::numeric_limits<float>::infinity() ? 0.0f : std::exp(max - total);
}

void merge_head(Partial& total, const Partial& part, std::int64_t head, std::int64_t stride) {
  const float max = std::max(total.max[head], part.max[head]);
  const float a = rescale(total.max[head], max), b = rescale(part.max[head], max);
  merge_values(total.values.get() + head * stride, a, part.values.get() + head * stride, b, stride);
  total.sum[head] = total.sum[head] * a + part.sum[head] * b;
  total.max[head] = max;
}

// A worker's buffers and the computation of one segment.
class Attention {
 public:
  Attention(const SparseMlaParams& p, const Layout& layout)
      : p_(p),
        layout_(layout),
        row_bytes_(layout.dim * element_size(layout.kernel.row_dtype)),
        zero_row_(hwy::AllocateAligned<std::uint8_t>(row_bytes_)),
        logits_(hwy::AllocateAligned<float>(p.num_heads * kSegment)) {
    std::memset(zero_row_.get(), 0, row_bytes_);
    if (layout.in_place) return;
    q_ = hwy::AllocateAligned<std::uint8_t>(p.num_heads * row_bytes_);
    rows_copy_ = hwy::AllocateAligned<std::uint8_t>(kSegment * row_bytes_);
  }

  void load_query(std::int64_t t) {
    query_ = element(p_.q, t * p_.num_heads * p_.dim);
    if (layout_.in_place) return;
    for (std::int64_t h = 0; h < p_.num_heads; ++h) {
      copy_row(element(p_.q, (t * p_.num_heads + h) * p_.dim), q_.get() + h * row_bytes_);
    }
    query_ = q_.get();
  }

  // The loaded query over `count` in 1..kSegment entries.
  void segment(const std::int32_t* entries, std::int64_t count, Partial& out) {
    const void* rows[kSegment + 4];
    for (std::int64_t i = 0; i < count; ++i) {
      rows[i] = element(p_.kv, entries[i] * p_.kv_stride);
      if (layout_.in_place) continue;
      std::uint8_t* copy = rows_copy_.get() + i * row_bytes_;
      copy_row(rows[i], copy);
      rows[i] = copy;
    }
    std::fill_n(rows + count, 4, rows[count - 1]);
    layout_.kernel.logits(query_, p_.num_heads, layout_.dim, rows, count, logits_.get());
    for (std::int64_t h = 0; h < p_.num_heads; ++h) {
      const SegmentSoftmax softmax =
          softmax_segment(logits_.get() + h * kSegment, count, p_.softmax_scale);
      out.max[h] = softmax.max;
      out.sum[h] = softmax.sum;
    }
    rows[count] = zero_row_.get();
    layout_.kernel.weighted_values(logits_.get(), p_.num_heads, rows, count, p_.value_dim,
                                   out.values.get(), layout_.stride);
  }

 private:
  const void* element(const void* data, std::int64_t i) const {
    return static_cast<const std::uint8_t*>(data) + i * element_size(p_.dtype);
  }

  void copy_row(const void* from, std::uint8_t* to) const {
    std::memset(to, 0, row_bytes_);
    if (layout_.kernel.row_dtype == p_.dtype) {
      std::memcpy(to, from, p_.dim * element_size(p_.dtype));
    } else {
      widen_bf16(static_cast<const std::uint16_t*>(from), p_.dim, reinterpret_cast<float*>(to));
    }
  }

  const SparseMlaParams& p_;
  const Layout& layout_;
  std::int64_t row_bytes_;
  Bytes zero_row_, q_, rows_copy_;
  Floats logits_;
  const void* query_ = nullptr;
};

// Head `head` of query t: the finished output and its logsumexp.
void write_head(const SparseMlaParams& p, const Layout& layout, const Partial& total,
                std::int64_t t, std::int64_t head) {
  const std::int64_t row = t * p.num_heads + head;
  void* out = static_cast<std::uint8_t*>(p.out) + row * p.value_dim * element_size(p.dtype);
  store_quotients(total.values.get() + head * layout.stride, total.sum[head], p.value_dim, p.dtype,
                  out);
  p.lse[row] = total.max[head] + std::log(total.sum[head]);
}

void write_empty(const SparseMlaParams& p, std::int64_t t) {
  const std::int64_t size = p.num_heads * p.value_dim * element_size(p.dtype);
  std::memset(static_cast<std::uint8_t*>(p.out) + t * size, 0, size);
  std::fill_n(p.lse + t * p.num_heads, p.num_heads, -std::numeric_limits<float>::infinity());
}

std::vector<std::int32_t> valid_entries(const SparseMlaParams& p, std::int64_t t) {
  std::vector<std::int32_t> entries;
  entries.reserve(p.top_k);
  std::copy_if(p.indices + t * p.top_k, p.indices + (t + 1) * p.top_k, std::back_inserter(entries),
               [](std::int32_t index) { return index >= 0; });
  return entries;
}

std::int64_t segment_length(const std::vector<std::int32_t>& entries, std::int64_t begin) {
  return std::min<std::int64_t>(kSegment, static_cast<std::int64_t>(entries.size()) - begin);
}

// A worker takes whole queries.
void run_by_query(const SparseMlaParams& p, const Layout& layout, const Parallel& parallel) {
  std::atomic<std::int64_t> next{0};
  parallel.run([&](int) {
    Attention attention(p, layout);
    Partial total(p.num_heads, layout.stride), part(p.num_heads, layout.stride);
    for (std::int64_t t; (t = next.fetch_add(1)) < p.num_queries;) {
      const std::vector<std::int32_t> entries = valid_entries(p, t);
      if (entries.empty()) {
        write_empty(p, t);
        continue;
      }
      attention.load_query(t);
      attention.segment(entries.data(), segment_length(entries, 0), total);
      for (std::size_t begin = kSegment; begin < entries.size(); begin += kSegment) {
        attention.segment(entries.data() + begin, segment_length(entries, begin), part);
        for (std::int64_t h = 0; h < p.num_heads; ++h) merge_head(total, part, h, layout.stride);
      }
      for (std::int64_t h = 0; h < p.num_heads; ++h) write_head(p, layout, total, t, h);
    }
  });
}

// Workers share the segments of every query, then its heads to merge.
void run_by_segment(const SparseMlaParams& p, const Layout& layout, const Parallel& parallel) {
  struct Item {
    std::int64_t query, begin;
  };
  std::vector<std::vector<std::int32_t>> entries;
  std::vector<Item> items;
  std::vector<std::size_t> first_item;  // of each query, and one past the last
  for (std::int64_t t = 0; t < p.num_queries; ++t) {
    entries.push_back(valid_entries(p, t));
    first_item.push_back(items.size());
    for (std::size_t begin = 0; begin < entries[t].size(); begin += kSegment) {
      items.push_back({t, static_cast<std::int64_t>(begin)});
    }
  }
  first_item.push_back(items.size());
  std::vector<Partial> parts;
  for (std::size_t i = 0; i < items.size(); ++i) parts.emplace_back(p.num_heads, layout.stride);

  std::atomic<std::size_t> next_item{0};
  parallel.run([&](int) {
    Attention attention(p, layout);
    std::int64_t loaded = -1;
    for (std::size_t i; (i = next_item.fetch_add(1)) < items.size();) {
      const auto [t, begin] = items[i];
      if (loaded != t) attention.load_query(t);
      loaded = t;
      attention.segment(entries[t].data() + begin, segment_length(entries[t], begin), parts[i]);
    }
  });

  std::atomic<std::int64_t> next_row{0};
  parallel.run([&](int) {
    for (std::int64_t row; (row = next_row.fetch_add(1)) < p.num_queries * p.num_heads;) {
      const std::int64_t t = row / p.num_heads, head = row % p.num_heads;
      if (entries[t].empty()) {
        if (head == 0) write_empty(p, t);
        continue;
      }
      Partial& total = parts[first_item[t]];
      for (std::size_t i = first_item[t] + 1; i < first_item[t + 1]; ++i) {
        merge_head(total, parts[i], head, layout.stride);
      }
      write_head(p, layout, total, t, head);
    }
  });
}

}  // namespace

void sparse_mla_cpu(const SparseMlaParams& p, const Parallel& parallel) {
  const Layout layout(p);
  if (parallel.num_workers > 1 && p.num_queries < kItemsPerWorker * parallel.num_workers) {
    run_by_segment(p, layout, parallel);
  } else {
    run_by_query(p, layout, parallel);
  }
}

}  // namespace indexcache
