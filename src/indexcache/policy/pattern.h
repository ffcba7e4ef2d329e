// Pattern: which layers run their own indexer, and whose index set the others reuse.
//
// A pattern gives each layer a source: -1 = Full (runs its own indexer), else the index of an
// earlier Full layer whose index set it reuses (Shared). Layer 0 is Full. A pattern is nearest if
// every Shared layer's source is the nearest Full layer below it (the paper's arXiv 2603.12201),
// else routed. It is a value: checked when made, never changed in place.
#pragma once

#include <compare>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace indexcache {

class Pattern {
 public:
  static constexpr int kFull = -1;

  // All layers Full.
  static Pattern full(int num_layers);
  // Full where layer mod n == 0: F S^(n-1) F ... (the paper's uniform schedule).
  static Pattern uniform(int n, int num_layers);
  // Full where max(layer - offset + 1, 0) mod n == 0 (the engines' rule; their default offset is
  // 2). offset >= 1.
  static Pattern every_nth(int n, int offset, int num_layers);
  // Nearest pattern whose Full layers are `full_layers` (any order, must hold 0).
  static Pattern nearest(const std::vector<int>& full_layers, int num_layers);
  // Throws InputError naming the layer if layer 0 is not Full or a source is not an earlier Full
  // layer.
  static Pattern from_sources(std::vector<int> sources);
  // "FSSF...", "-1,0,-1,...", "full", "uniform:1/n", "freq:n[:offset]". Throws InputError.
  static Pattern parse(std::string_view text, int num_layers);

  int num_layers() const { return static_cast<int>(sources_.size()); }
  int source(int layer) const { return sources_[layer]; }
  const std::vector<int>& sources() const { return sources_; }
  bool is_full(int layer) const { return sources_[layer] == kFull; }
  bool is_nearest() const;
  std::vector<int> full_layers() const;
  int num_full() const;
  // The layers that read layer's index set, itself first. Empty for a Shared layer.
  std::vector<int> readers(int layer) const;
  // The last layer that reads it; its index set can be dropped after that one. Only for Full
  // layers.
  int last_reader(int layer) const;

  // The pattern after one move, routed: `layer` becomes Shared with source `source` (an earlier
  // Full layer); its readers now read `source`.
  Pattern with_shared(int layer, int source) const;
  // One source changed, Full layers as they are. `layer` is Shared.
  Pattern with_source(int layer, int source) const;
  // The nearest pattern with the same Full layers.
  Pattern as_nearest() const;

  // "FSSF" for nearest patterns, "-1,0,-1,1" for routed ones; parse(str()) gives the pattern back.
  std::string str() const;

  friend bool operator==(const Pattern&, const Pattern&) = default;
  friend auto operator<=>(const Pattern&, const Pattern&) = default;

 private:
  explicit Pattern(std::vector<int> sources) : sources_(std::move(sources)) {}
  std::vector<int> sources_;
};

// The number of Full layers that KEEP ("a/b" = ceil(num_layers a / b), or a count) asks for. Throws
// InputError unless it is in [1, num_layers].
int parse_keep(std::string_view text, int num_layers);

// Throws InputError unless every Full layer of the pattern has an indexer in the model at hand, which has
// as many layers.
void require_indexers(const Pattern& pattern, const std::function<bool(int layer)>& has_indexer);

}  // namespace indexcache
