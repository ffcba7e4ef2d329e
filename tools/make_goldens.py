#!/usr/bin/env python3
"""Makes tests/golden/models: tiny random DSA checkpoints and what transformers computes from them.

    python -m venv /tmp/oracle && /tmp/oracle/bin/pip install torch==2.11.0 transformers==5.17.0 safetensors
    /tmp/oracle/bin/python tools/make_goldens.py [NAME ...]

Every folder NAME holds a Hugging Face model, golden.json and one expected.*.safetensors per pattern: `tokens` [T] int64, `logits`
[T, vocab] fp32, and `index_set.i` [T, k] int32 per Full layer i (ascending, -1 padded). k is far below T, so a wrong indexer shows.

Random selections tie. With small random weights index scores tie at exactly zero, and a score near the k-th flips with the
order of summation; then transformers disagrees even with itself over prompt lengths. So tokens are drawn such that, at every
query of every layer, index scores and router choices keep a margin far above rounding (a query depends on earlier tokens only:
the first query with too small a margin gets another token, until none is left), and it is asserted that transformers agrees with
itself whole, shortened, in chunks and token by token.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM, GlmMoeDsaConfig, GlmMoeDsaForCausalLM

from transformers_oracle import Oracle

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/models"
INDEX_MARGIN = 5e-4  # relative to the query's largest |index score|
ROUTER_MARGIN = 5e-4  # absolute; choices are of order 1
SELF_DIFFERENCE = 2e-5  # logits of transformers against itself

SMALL = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 40, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20,
    "index_n_heads": 8, "index_head_dim": 32, "index_topk": 20,
    "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
}  # fmt: skip

# Large enough for partial 128x128 blocks in both directions: kv_a_proj_with_mqa has 144 rows and 160 columns.
FP8 = SMALL | {
    "hidden_size": 160, "intermediate_size": 144, "num_hidden_layers": 2, "kv_lora_rank": 128, "q_lora_rank": 48,
    "n_routed_experts": 4, "moe_intermediate_size": 20,
}  # fmt: skip


@dataclasses.dataclass
class Case:
    architecture: str  # "glm" or "deepseek"
    shows: str
    config: dict
    config_edit: dict = dataclasses.field(default_factory=dict)  # None drops a key
    patterns: dict = dataclasses.field(default_factory=lambda: {"model": "model"})
    dtype: torch.dtype = torch.bfloat16
    experts: str = "separate"  # or "fused"
    shard_size: str = "1GB"
    router_bias: float = 0.0  # mean of e_score_correction_bias
    norm_input_scale: float = 1.0  # of q_a_proj, kv_a_proj_with_mqa and wk: small, and the epsilon of their norms matters
    latent_norm_eps: float | None = None  # what --latent-norm-eps has to be
    scale_format: str | None = None  # FP8: "float32" or "ue8m0"
    tokens: int = 160


CASES = {
    "glm_full": Case(
        "glm", "all layers Full, and the same weights under a nearest and a routed pattern", SMALL | {"num_hidden_layers": 4},
        patterns={"model": "model", "nearest": "FSFS", "routed": "-1,-1,0,1"}),
    "glm_mixed": Case(
        "glm", "transformers' own mixed schedule; 5 attention heads, 5 index heads of 48, fused experts, two shared experts, "
        "dense and sparse layers mixed, fp16",
        SMALL | {"num_hidden_layers": 5, "num_attention_heads": 5, "index_n_heads": 5, "index_head_dim": 48, "index_topk": 24,
                 "n_shared_experts": 2, "indexer_types": ["full", "shared", "full", "shared", "shared"],
                 "mlp_layer_types": ["sparse", "dense", "sparse", "dense", "sparse"],
                 "rope_parameters": {"rope_type": "default", "rope_theta": 8e6}},
        dtype=torch.float16, experts="fused"),
    "glm_half_split": Case(
        "glm", "indexer_rope_interleave false; tied embeddings, expert weights not normalised, fp32",
        SMALL | {"num_hidden_layers": 2, "tie_word_embeddings": True, "norm_topk_prob": False},
        config_edit={"indexer_rope_interleave": False}, dtype=torch.float32),
    "glm_latent_eps": Case(
        "glm", "rms_norm_eps 1e-5, where transformers' latent and index key norms use 1e-6; schedule from index_topk_freq and offset",
        SMALL | {"num_hidden_layers": 4, "rms_norm_eps": 1e-5, "indexer_types": ["full", "full", "shared", "full"]},
        config_edit={"indexer_types": None, "index_topk_freq": 2, "index_skip_topk_offset": 2},
        norm_input_scale=0.03, latent_norm_eps=1e-6),
    "deepseek_yarn": Case(
        "deepseek", "YaRN far past its original length, group-limited routing with negative choices, shards, DeepSeek's config keys; "
        "a nearest and a routed pattern by copied index sets",
        SMALL | {"num_hidden_layers": 4, "qk_rope_head_dim": 32, "index_head_dim": 48, "v_head_dim": 24,
                 "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "moe_intermediate_size": 8,
                 "max_position_embeddings": 512,
                 "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
                                     "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}},
        config_edit={"rope_parameters": None, "rope_theta": 10000, "layer_types": None, "mlp_layer_types": None, "head_dim": None,
                     "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "ep_size": 1,
                     "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 64, "beta_fast": 32,
                                      "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}},
        patterns={"model": "model", "nearest": "FFSS", "routed": "-1,-1,0,1"}, router_bias=-1.5, shard_size="100KB", tokens=180),
    "deepseek_interleaved": Case(
        "deepseek", "indexer_rope_interleave true; YaRN whose mscale and mscale_all_dim differ; 5 attention heads, fused experts",
        SMALL | {"num_hidden_layers": 2, "num_attention_heads": 5, "index_n_heads": 16, "index_topk": 22,
                 "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128,
                                     "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.7}},
        config_edit={"indexer_rope_interleave": True}, experts="fused"),
    "glm_fp8": Case(
        "glm", "FP8 weights in 128x128 blocks, partial ones too; schedule from index_topk_pattern",
        FP8 | {"indexer_types": ["full", "shared"]}, config_edit={"indexer_types": None, "index_topk_pattern": "FS"},
        scale_format="float32"),
    "deepseek_fp8_ue8m0": Case("deepseek", "FP8 weights with power-of-two scales", FP8, scale_format="ue8m0"),
}  # fmt: skip

CLASSES = {"glm": (GlmMoeDsaConfig, GlmMoeDsaForCausalLM), "deepseek": (DeepseekV32Config, DeepseekV32ForCausalLM)}


def random_model(case, generator):
    config_class, model_class = CLASSES[case.architecture]
    model = model_class(config_class(**case.config, num_key_value_heads=case.config["num_attention_heads"])).float().eval()

    def normal(tensor, deviation, mean=0.0):
        tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                normal(tensor, 0.1, case.router_bias)
            elif name.endswith("k_norm.bias"):
                normal(tensor, 0.2)
            elif name.endswith("norm.weight"):
                tensor.copy_(0.7 + 0.6 * torch.rand(tensor.shape, generator=generator))
            elif "embed_tokens" in name:
                normal(tensor, 0.3 if case.config.get("tie_word_embeddings") else 1.0)
            elif not name.endswith("inv_freq"):
                scale = 1.5 if ".indexer." in name else 1.0
                if "_a_proj" in name or ".wk." in name:
                    scale *= case.norm_input_scale
                normal(tensor, scale / math.sqrt(tensor.shape[-1]))
    return model


def to_fp8_blocks(matrix, power_of_two, block=128):
    rows, columns = matrix.shape
    padded = torch.zeros(math.ceil(rows / block) * block, math.ceil(columns / block) * block)
    padded[:rows, :columns] = matrix
    tiles = padded.unflatten(0, (-1, block)).unflatten(2, (-1, block))
    scale = tiles.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    if power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    values = (tiles / scale[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
    return values.contiguous().to(torch.float8_e4m3fn), scale


def quantize_folder(folder, scale_format):
    """Rewrites a folder as the FP8 releases store it: projections in FP8 blocks, the rest bf16, the routing bias fp32."""
    kept = ("norm", "embed_tokens", "lm_head", "mlp.gate.", "weights_proj")
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if any(part in name for part in kept):
            tensors[name] = tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
        else:
            tensors[name], tensors[name + "_scale_inv"] = to_fp8_blocks(tensor, scale_format == "ue8m0")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    if scale_format == "ue8m0":
        quantization["scale_fmt"] = "ue8m0"
    return {"quantization_config": quantization, "dtype": "bfloat16"}


def write_model(case, folder, generator):
    model = random_model(case, generator)
    if case.scale_format is None:
        model.to(case.dtype)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.data = buffer.data.float()
    model.save_pretrained(folder, save_original_format=case.experts == "separate", max_shard_size=case.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit = dict(case.config_edit)
    if case.scale_format is not None:
        edit |= quantize_folder(folder, case.scale_format)
    config = json.loads((folder / "config.json").read_text()) | edit
    config = {key: value for key, value in config.items() if not (key in edit and value is None)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def smallest(margins):
    """Over layers: [T]."""
    return torch.stack(list(margins)).amin(0)


def draw_clear_tokens(oracle, count, vocabulary, generator):
    """Tokens at which every index set and every routing keeps its margin."""
    tokens = torch.randint(vocabulary, (count,), generator=generator)
    for _ in range(100 * count):
        run = oracle.run(tokens)
        close = smallest(run.index_margins.values()) < INDEX_MARGIN
        close |= smallest(run.router_margins) < ROUTER_MARGIN
        if not close.any():
            return tokens, run
        tokens[close.nonzero()[0]] = torch.randint(vocabulary, (1,), generator=generator)
    raise SystemExit("no tokens with clear margins found")


def difference_from_itself(oracle, tokens, run):
    """Largest logit difference of transformers from itself over prompt lengths, chunks and decode; index sets must not differ."""
    count = len(tokens)
    largest = 0.0
    for length, chunks in [(count - 30, None), (count, [64, 64, count - 128]), (count, [count - 40] + [1] * 40)]:
        other = oracle.run(tokens[:length], chunks)
        largest = max(largest, (other.logits - run.logits[:length]).abs().max().item())
        for layer, rows in run.index_sets.items():
            assert torch.equal(other.index_sets[layer], rows[:length]), f"transformers disagrees with itself in layer {layer}"
    assert largest < SELF_DIFFERENCE, f"transformers differs from itself by {largest}"
    return largest


def make(name, case):
    seed = 1000 + list(CASES).index(name)
    generator = torch.Generator().manual_seed(seed)
    expectations = []
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work) / name
        write_model(case, folder, generator)
        for label, pattern in case.patterns.items():
            oracle = Oracle(folder, pattern)
            tokens, run = draw_clear_tokens(oracle, case.tokens, case.config["vocab_size"], generator)
            tensors = {"tokens": tokens, "logits": run.logits.contiguous()}
            tensors |= {f"index_set.{layer}": rows for layer, rows in run.index_sets.items()}
            save_file(tensors, folder / f"expected.{label}.safetensors")
            expectations.append({
                "file": f"expected.{label}.safetensors",
                "pattern": pattern,
                "latent_norm_eps": case.latent_norm_eps,
                "index_margin": float(f"{smallest(run.index_margins.values()).min():.3g}"),
                "router_margin": float(f"{smallest(run.router_margins).min():.3g}"),
                "transformers_difference_from_itself": float(f"{difference_from_itself(oracle, tokens, run):.3g}"),
            })  # fmt: skip
        versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
        golden = {"shows": case.shows, "made_by": "tools/make_goldens.py", "versions": versions, "seed": seed, "expectations": expectations}
        (folder / "golden.json").write_text(json.dumps(golden, indent=2) + "\n")
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        shutil.copytree(folder, FOLDER / name)
    size = sum(file.stat().st_size for file in (FOLDER / name).iterdir())
    print(f"{name}: {size / 1e3:.0f} KB")
    for expected in expectations:
        print("   " + ", ".join(f"{key} {value}" for key, value in expected.items() if key != "file"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; default: all")
    names = parser.parse_args().names or list(CASES)
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    for name in names:
        make(name, CASES[name])


if __name__ == "__main__":
    main()
