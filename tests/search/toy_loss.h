// Toy losses over patterns: functions with planted structure, for tests of the search alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "indexcache/policy/pattern.h"
#include "indexcache/search/search.h"

namespace indexcache {

// A loss with the traits seen on real models: layers drift in what they look for, so a source's
// worth falls with its distance but not in order of depth; most layers matter little alone; some
// functions are carried by several layers and break only when all of these do, so that single moves
// say little about sets; sequences weigh these differently.
class ToyLoss {
 public:
  ToyLoss(int num_layers, int num_sequences, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    std::uniform_int_distribution<int> layers(0, num_layers - 1);
    std::vector<std::vector<double>> taste(num_layers, std::vector<double>(3));
    for (int layer = 0; layer < num_layers; ++layer) {
      const int like = layer > 2 && uniform(random) < 0.3 ? layer - 2 : layer - 1;
      for (int i = 0; i < 3; ++i) {
        taste[layer][i] = (layer > 0 ? 0.9 * taste[like][i] : 0) + 0.45 * normal(random);
      }
    }
    kept_.assign(num_layers, std::vector<double>(num_layers, 1.0));
    for (int layer = 0; layer < num_layers; ++layer) {
      const double strictness = std::exp(0.7 * normal(random));
      for (int source = 0; source < layer; ++source) {
        double distance = 0;
        for (int i = 0; i < 3; ++i) distance += std::pow(taste[layer][i] - taste[source][i], 2);
        kept_[layer][source] = std::exp(-strictness * distance);
      }
    }
    for (int layer = 1; layer < num_layers; ++layer) {
      terms_.push_back({{layer}, 0.01 * std::exp(1.2 * normal(random)), true});
    }
    for (int i = 0; i < 3 * num_layers; ++i) {
      std::vector<int> members;
      const int size = 2 + i % 3;
      while (static_cast<int>(members.size()) < size) {
        const int layer = layers(random);
        if (std::find(members.begin(), members.end(), layer) == members.end()) {
          members.push_back(layer);
        }
      }
      // Every third one breaks with its first member, so that the others are then free.
      const bool needs_all = i % 3 == 1;
      terms_.push_back(
          {members, (needs_all ? 0.01 : 0.04 * size) * std::exp(normal(random)), needs_all});
    }
    // Pairs of sources that happen to get along, or not.
    pairs_.resize(num_layers * num_layers * num_layers * num_layers);
    for (double& pair : pairs_) pair = 0.0015 * normal(random);
    num_layers_ = num_layers;
    for (int sequence = 0; sequence < num_sequences; ++sequence) {
      std::vector<double> factors;
      for (std::size_t i = 0; i < terms_.size(); ++i) {
        factors.push_back(std::exp(0.4 * normal(random)));
      }
      factors_.push_back(factors);
    }
  }

  Losses operator()(const Pattern& pattern) const {
    std::vector<double> broken(terms_.size());
    for (std::size_t i = 0; i < terms_.size(); ++i) {
      double all_kept = 1, none_kept = 1;
      for (const int layer : terms_[i].layers) {
        const int source = pattern.source(layer);
        const double kept = source == Pattern::kFull ? 1 : kept_[layer][source];
        all_kept *= kept;
        none_kept *= 1 - kept;
      }
      broken[i] = terms_[i].weight * (terms_[i].needs_all ? 1 - all_kept : none_kept);
    }
    double chance = 0;
    for (int a = 1; a < num_layers_; ++a) {
      for (int b = 1; b < a; ++b) {
        if (pattern.is_full(a) || pattern.is_full(b)) continue;
        const double harm = (1 - kept_[a][pattern.source(a)]) * (1 - kept_[b][pattern.source(b)]);
        chance +=
            harm * pairs_[((a * num_layers_ + pattern.source(a)) * num_layers_ + b) * num_layers_ +
                          pattern.source(b)];
      }
    }
    Losses losses;
    for (const auto& factors : factors_) {
      double loss = 2.5 + chance;
      for (std::size_t i = 0; i < terms_.size(); ++i) loss += factors[i] * broken[i];
      losses.per_sequence.push_back(loss);
    }
    return losses;
  }

 private:
  struct Term {
    std::vector<int> layers;
    double weight;
    bool needs_all;
  };
  int num_layers_ = 0;
  std::vector<std::vector<double>> kept_;  // [layer][source]: how well the source's set serves it
  std::vector<Term> terms_;
  std::vector<double> pairs_;                 // [layer][source][layer][source]
  std::vector<std::vector<double>> factors_;  // [sequence][term]
};

}  // namespace indexcache
