#!/usr/bin/env python3
"""Writes a small random model that reads text, and a text for it: make_text_model.py FOLDER [LAYERS]

FOLDER becomes a glm_moe_dsa folder with LAYERS layers (default 6) and a byte-level tokenizer.json without merges;
FOLDER/text.txt is a text of made-up words. Needs the golden model glm_full (its shapes and norms) and nothing beside Python's
own library. The same call writes the same bytes.
"""
import array, json, math, pathlib, random, struct, sys

golden = pathlib.Path(__file__).parent.parent / "golden/models/glm_full"
folder = pathlib.Path(sys.argv[1])
num_layers = int(sys.argv[2]) if len(sys.argv) > 2 else 6
vocab_size = 257
random.seed(7)

config = json.loads((golden / "config.json").read_text())
golden_layers = config["num_hidden_layers"]
config.update(num_hidden_layers=num_layers, vocab_size=vocab_size, eos_token_id=256,
              indexer_types=["full"] * num_layers,
              layer_types=["deepseek_sparse_attention"] * num_layers,
              mlp_layer_types=["dense"] + ["sparse"] * (num_layers - 1))

data = (golden / "model.safetensors").read_bytes()
header_size = struct.unpack("<Q", data[:8])[0]
stored = json.loads(data[8:8 + header_size])
stored.pop("__metadata__", None)


def bf16(values):
    bits = array.array("I", array.array("f", values).tobytes())
    return array.array("H", ((b + 0x8000) >> 16 for b in bits)).tobytes()


def make(name, entry):
    """Matrices drawn anew; norms and biases as the golden model has them."""
    shape = entry["shape"]
    if len(shape) == 1:
        begin, end = entry["data_offsets"]
        return entry["dtype"], shape, data[8 + header_size + begin:8 + header_size + end]
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        shape = [vocab_size, shape[1]]
    scale = (1.5 if "indexer" in name else 1) / math.sqrt(shape[1])
    return "BF16", shape, bf16(random.gauss(0, scale) for _ in range(shape[0] * shape[1]))


tensors = {}
for name, entry in sorted(stored.items()):
    if ".layers." not in name:
        tensors[name] = make(name, entry)
for layer in range(num_layers):
    # Layer 0 is dense; every other one has the shapes of a sparse layer.
    prefix = f"model.layers.{0 if layer == 0 else 1 + layer % (golden_layers - 1)}."
    for name, entry in sorted(stored.items()):
        if name.startswith(prefix):
            own = f"model.layers.{layer}." + name[len(prefix):]
            tensors[own] = make(own, entry)

header, offset = {"__metadata__": {"format": "pt"}}, 0
for name, (dtype, shape, payload) in tensors.items():
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(payload)]}
    offset += len(payload)
text = json.dumps(header).encode()
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for _, _, payload in tensors.values():
        file.write(payload)
(folder / "config.json").write_text(json.dumps(config))

printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
alphabet, extra = {}, 256
for byte in range(256):
    alphabet[byte] = chr(byte if byte in printable else extra)
    extra += byte not in printable
split = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
         "\\s+(?!\\S)|\\s+")
byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
tokenizer = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 256, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}, byte_level]},
    "post_processor": byte_level, "decoder": byte_level,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
              "vocab": {alphabet[byte]: byte for byte in range(256)}, "merges": []}}
(folder / "tokenizer.json").write_text(json.dumps(tokenizer))

words = ["".join(random.choice("abdeghiklmnoprstu") for _ in range(random.randint(2, 7))) for _ in range(120)]
(folder / "text.txt").write_text(" ".join(random.choice(words) for _ in range(1200)) + ".\n")
