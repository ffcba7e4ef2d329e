// Training batches: windows of the tokenised text and generated retrieval, each a function of the
// seed and its place in the run alone, so that a resumed run goes on with what would have come.
#pragma once

#include <cstdint>
#include <vector>

#include "indexcache/data/retrieval.h"
#include "indexcache/data/text.h"
#include "indexcache/tokenizer/tokenizer.h"
#include "indexcache/train/run_config.h"

namespace indexcache {

struct BatchPlace {
  int stage = 0, phase = 0;
  std::int64_t step = 0;  // of the phase
};

// A process's rows of a step's `sequences`: as even as they go.
struct BatchRows {
  std::int64_t first = 0, count = 0;
};
BatchRows rows_of(std::int64_t sequences, int rank, int num_processes);

// Row-major [sequences, context], as TrainingBatch.
struct HostBatch {
  std::vector<std::int64_t> inputs, targets;
  std::vector<float> weights;
  std::vector<std::uint8_t> answers;
};

// Thread-safe. tokenizer and stream must outlive it.
class BatchSource {
 public:
  // Throws InputError if the text has no window of the longest context, or if some retrieval prompt
  // of the config does not fit into its phase's context.
  BatchSource(const RunConfig& config, const Tokenizer& tokenizer, const TokenStream& stream);

  HostBatch make(const BatchPlace& place) const;

 private:
  // Windows of a phase are cut at a random offset and visited in an order drawn for each pass over
  // the text, none twice in a pass.
  std::span<const std::int32_t> window(const BatchPlace& place, std::int64_t index,
                                       std::int64_t length) const;
  RetrievalPrompt retrieval(std::span<const std::int32_t> filler, std::int64_t context,
                            std::mt19937_64& random) const;
  void check_retrieval(std::int64_t context) const;

  const RunConfig* config_;
  const TokenStream* stream_;
  RetrievalGenerator generator_;
};

}  // namespace indexcache
