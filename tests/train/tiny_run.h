// A run config small enough to train in seconds, text for it and its folder.
#pragma once

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "indexcache/data/text.h"
#include "support/temporary_folder.h"
#include "support/tiny_tokenizer.h"

namespace indexcache::testing {

constexpr int kTinyWords = 200;

inline nlohmann::json tiny_model_json(std::int64_t vocab_size) {
  return {{"model_type", "glm_moe_dsa"},
          {"vocab_size", vocab_size},
          {"hidden_size", 128},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 2},
          {"q_lora_rank", 128},
          {"kv_lora_rank", 128},
          {"qk_nope_head_dim", 64},
          {"qk_rope_head_dim", 64},
          {"v_head_dim", 64},
          {"index_n_heads", 2},
          {"index_head_dim", 128},
          {"index_topk", 16},
          {"intermediate_size", 128},
          {"moe_intermediate_size", 128},
          {"mlp_layer_types", {"dense", "sparse"}},
          {"n_routed_experts", 4},
          {"num_experts_per_tok", 2},
          {"n_shared_experts", 1},
          {"n_group", 1},
          {"topk_group", 1},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 1.0},
          {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000.0}}},
          {"rms_norm_eps", 1e-6},
          {"max_position_embeddings", 128},
          {"tie_word_embeddings", false},
          {"eos_token_id", vocab_size - 1}};
}

inline nlohmann::json tiny_stage(const std::string& kind, double rate, std::int64_t tokens,
                                 std::int64_t context = 64, std::int64_t sequences = 4) {
  return {{"kind", kind},
          {"learning_rate", rate},
          {"phases", {{{"context", context}, {"sequences", sequences}, {"tokens", tokens}}}}};
}

inline nlohmann::json tiny_run_json(const std::vector<nlohmann::json>& stages) {
  const auto vocab = tiny_tokenizer(kTinyWords).vocab_size();
  return {{"model", tiny_model_json(vocab)},
          {"seed", 7},
          {"data", {{"retrieval_share", 0.25}, {"keys", {1}}}},
          {"stages", stages},
          {"log_steps", 5},
          {"checkpoint_seconds", 0}};
}

// Four layers instead of two, so that patterns differ.
inline nlohmann::json tiny_four_layers(nlohmann::json run) {
  run["model"]["num_hidden_layers"] = 4;
  run["model"]["mlp_layer_types"] = {"dense", "sparse", "dense", "dense"};
  return run;
}

// Made-up words, 40 in all and equally frequent, in which each tells the next up to one bit: a
// unigram's loss is log 40 = 3.7, that of whoever has learned them log 2 = .7.
inline TokenStream tiny_text(const Tokenizer& tokenizer, int num_words) {
  const auto words = made_up_words(40);
  std::mt19937 random(3);
  std::string text;
  std::size_t word = 0;
  for (int i = 0; i < num_words; ++i) {
    text += " " + words[word];
    word = (word * 7 + 3 + random() % 2) % words.size();
  }
  return tokenize({{.source = "tiny", .text = text}}, tokenizer);
}

// tokenizer.json in a folder of its own.
class TokenizerFolder {
 public:
  TokenizerFolder() { folder_.write("tokenizer.json", tiny_tokenizer_json(kTinyWords).dump()); }
  const std::filesystem::path& path() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
};

}  // namespace indexcache::testing
