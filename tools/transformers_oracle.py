"""A DSA model folder run by Hugging Face transformers in fp32 on the CPU, under any pattern, with its index sets.

Used by make_goldens.py and check_in_transformers.py. Needs torch, transformers 5.17, safetensors (see docs of either script).

transformers follows mixed schedules of glm_moe_dsa only, and only nearest ones; it knows no `indexer_rope_interleave` and its
FP8 loading on the CPU is no oracle (partial blocks). What it lacks is built here out of its own parts: a Shared layer is handed
the copied index set of its source, the other indexer RoPE style is its other architecture's indexer class, and FP8 tensors
are multiplied out into a folder in fp32 first.
"""

import dataclasses
import json
import pathlib
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer
from transformers.models.deepseek_v32.modeling_deepseek_v32 import apply_rotary_pos_emb as rotate_half_split
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaIndexer
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import apply_rotary_pos_emb_interleave as rotate_interleaved

FULL = -1


def parse_pattern(text, num_layers):
    """The sources [num_layers] that "FSSF" or "-1,0,-1,1" names."""
    if "," in text or text == str(FULL):
        return [int(source) for source in text.split(",")]
    if text == "full":
        return [FULL] * num_layers
    sources, nearest = [], FULL
    for layer, letter in enumerate(text):
        sources.append(FULL if letter == "F" else nearest)
        nearest = layer if letter == "F" else nearest
    return sources


def own_sources(config):
    """The schedule that a config.json (a dict) states: indexcache_sources (routed), indexer_types, pattern, or freq and offset."""
    num_layers = config["num_hidden_layers"]
    if config.get("indexcache_sources"):
        return list(config["indexcache_sources"])
    types = config.get("indexer_types") or config.get("index_topk_pattern")
    if types is None:
        freq, offset = max(config.get("index_topk_freq") or 1, 1), config.get("index_skip_topk_offset", 2)
        types = ["full" if max(i - offset + 1, 0) % freq == 0 else "shared" for i in range(num_layers)]
    return parse_pattern("".join("F" if t in ("full", "F") else "S" for t in types), num_layers)


def dequantize(fp8, scale, block=(128, 128)):
    rows, columns = fp8.shape
    spread = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return fp8.float() * spread[:rows, :columns]


def load_tensors(folder):
    """All tensors of a model folder, FP8 ones multiplied out to fp32."""
    folder = pathlib.Path(folder)
    stored = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name.startswith("model"):
            stored.update(load_file(file))
    config = json.loads((folder / "config.json").read_text())
    block = (config.get("quantization_config") or {}).get("weight_block_size", (128, 128))
    tensors = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(name + "_scale_inv")
        tensors[name] = tensor if scale is None else dequantize(tensor, scale, block)
    return tensors


def load_in_transformers(folder):
    """The model, and the names of tensors it wanted and missed, and of those it did not want."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    with tempfile.TemporaryDirectory() as plain:
        if "quantization_config" in config:
            save_file(load_tensors(folder), pathlib.Path(plain) / "model.safetensors", metadata={"format": "pt"})
            del config["quantization_config"]
            (pathlib.Path(plain) / "config.json").write_text(json.dumps(config))
            folder = plain
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    return model.eval(), sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


class CopiedSet(torch.nn.Module):
    """Stands in for a Shared layer's indexer: hands on the top-k indices that its source layer has just selected."""

    def __init__(self, selected, source):
        super().__init__()
        self.selected, self.source = selected, source

    def forward(self, *_args, **_kwargs):
        return self.selected[self.source]


@dataclasses.dataclass
class Run:
    logits: torch.Tensor  # [T, vocab] fp32
    index_sets: dict  # Full layer -> [T, k] int32, ascending, -1 padded
    # How far every query is from another selection (whole prompts only):
    index_margins: dict  # Full layer -> [T]: (k-th - (k+1)-th index score) / largest |score|
    router_margins: list  # of each MoE layer, [T]: last chosen - first rejected expert (and group)


class Oracle:
    def __init__(self, folder, pattern="model"):
        self.config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.model, self.missing, self.unexpected = load_in_transformers(folder)
        layers = self.config["num_hidden_layers"]
        self.sources = own_sources(self.config) if pattern == "model" else parse_pattern(pattern, layers)
        self.top_k = self.config["index_topk"]
        self.interleaved = self.config.get("indexer_rope_interleave", self.config["model_type"] == "glm_moe_dsa")
        self.selected, self.sets, self.index_margins, self.router_margins = {}, {}, {}, []
        for layer, block in enumerate(self.model.model.layers):
            self._prepare(layer, block)

    def _prepare(self, layer, block):
        attention, source = block.self_attn, self.sources[layer]
        if source != FULL:
            attention.indexer = CopiedSet(self.selected, source)
        else:
            if attention.indexer is None:
                raise SystemExit(f"layer {layer} has no indexer: it can only be Shared")
            wanted = GlmMoeDsaIndexer if self.interleaved else DeepseekV32Indexer
            if not isinstance(attention.indexer, wanted):
                indexer = wanted(self.model.config, layer)
                indexer.load_state_dict(attention.indexer.state_dict())
                attention.indexer = indexer.eval()
            attention.indexer.register_forward_hook(lambda *call, layer=layer: self._after_indexer(layer, *call), with_kwargs=True)
        if hasattr(block.mlp, "gate"):
            block.mlp.gate.register_forward_hook(self._after_router)

    @torch.no_grad()
    def run(self, tokens, chunks=None):
        """The whole prompt at once, or in chunks of the sizes given through transformers' cache."""
        self.sets = {layer: [] for layer, source in enumerate(self.sources) if source == FULL}
        self.index_margins, self.router_margins = {}, []
        if chunks is None:
            self.measure, self.first = True, 0
            logits = self.model(tokens[None], use_cache=False).logits[0]
        else:
            self.measure, self.first, cache, parts = False, 0, None, []
            for size in chunks:
                out = self.model(tokens[None, self.first : self.first + size], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                parts.append(out.logits[0])
                self.first += size
            logits = torch.cat(parts)
        sets = {layer: torch.cat(rows) for layer, rows in self.sets.items()}
        return Run(logits, sets, self.index_margins, self.router_margins)

    def _after_indexer(self, layer, indexer, inputs, options, output):
        self.selected[layer] = output
        queries = self.first + torch.arange(output.shape[1])
        chosen = output[0].long()
        chosen = torch.where(chosen <= queries[:, None], chosen, torch.iinfo(torch.int64).max).sort(-1).values
        rows = torch.full((len(queries), self.top_k), -1, dtype=torch.int32)
        rows[:, : chosen.shape[1]] = torch.where(chosen <= queries[:, None], chosen, -1).to(torch.int32)
        self.sets[layer].append(rows)
        if self.measure:
            self.index_margins[layer] = self._measure_index_scores(indexer, inputs, rows)

    def _measure_index_scores(self, indexer, inputs, rows):
        """Margins of the index scores, in double; where they are clear, transformers' fp32 selection must be the exact one."""
        hidden, q_latent, (cos, sin) = inputs[0].double(), inputs[1].double(), inputs[2]
        exact = {name: value.double() for name, value in indexer.state_dict().items()}
        rope, heads, dim = indexer.qk_rope_head_dim, indexer.n_heads, indexer.head_dim
        q = (q_latent @ exact["wq_b.weight"].T).unflatten(-1, (heads, dim))
        k = torch.nn.functional.layer_norm(hidden @ exact["wk.weight"].T, (dim,), exact["k_norm.weight"], exact["k_norm.bias"], 1e-6)
        rotate = rotate_interleaved if self.interleaved else rotate_half_split
        q_rope, k_rope = rotate(q[..., :rope], k[..., None, :rope], cos.double(), sin.double(), unsqueeze_dim=2)
        q = torch.cat([q_rope, q[..., rope:]], -1)[0]
        k = torch.cat([k_rope[..., 0, :], k[..., rope:]], -1)[0]
        w = (hidden @ exact["weights_proj.weight"].T)[0]
        scores = sum(w[:, head, None] * torch.relu(q[:, head] @ k.T) for head in range(heads))
        num_queries = len(scores)
        causal = torch.ones(num_queries, num_queries, dtype=torch.bool).tril()
        scale = scores.masked_fill(~causal, 0).abs().amax(-1)
        scores = scores.masked_fill(~causal, -torch.inf)
        margins = torch.full((num_queries,), torch.inf, dtype=torch.float64)
        if num_queries > self.top_k:
            top = scores.topk(self.top_k + 1, dim=-1)
            gap = (top.values[:, -2] - top.values[:, -1]) / scale
            margins[self.top_k :] = gap[self.top_k :]
            clear = margins > 1e-4
            exact_rows = top.indices[:, :-1].sort(-1).values.to(torch.int32)
            decided = clear & (torch.arange(num_queries) >= self.top_k)
            assert torch.equal(exact_rows[decided], rows[decided]), "transformers selected another set than exact scores give"
        return margins.float()

    def _after_router(self, gate, _inputs, output):
        if not self.measure:
            return
        choice = output[0].double().sigmoid() + gate.e_score_correction_bias.double()
        margins = torch.full((len(choice),), torch.inf, dtype=torch.float64)
        if gate.num_group > gate.topk_group:
            groups = choice.view(len(choice), gate.num_group, -1)
            group_scores = groups.topk(2, dim=-1).values.sum(-1)
            best = group_scores.topk(gate.topk_group + 1, dim=-1)
            margins = best.values[:, -2] - best.values[:, -1]
            open_groups = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, best.indices[:, :-1], True)
            choice = groups.masked_fill(~open_groups[..., None], -torch.inf).flatten(1)
        best = choice.topk(gate.top_k + 1, dim=-1).values
        self.router_margins.append(torch.minimum(margins, best[:, -2] - best[:, -1]).float())
