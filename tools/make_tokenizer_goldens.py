#!/usr/bin/env python3
"""Makes tests/golden/tokenizer: small tokenizers and what the `tokenizers` library computes with them.

    python -m venv /tmp/oracle && /tmp/oracle/bin/pip install tokenizers==0.23.3
    /tmp/oracle/bin/python tools/make_tokenizer_goldens.py

texts.json holds the texts, hand-picked and random. Each folder NAME holds a tokenizer.json and golden.json:

    encoded            for each text its ids, without added special tokens
    decoded            [ids, text, text without special tokens] for random id sequences, ids outside the vocabulary among them
    code_point_hashes  for each 4096 code points the FNV-1a hash (64 bits, hex) over the ids of texts that hold them all
"""

import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests/golden/tokenizer"

GLM_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_PATTERNS = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]

HAND_PICKED = [
    "",
    " ",
    "\n",
    "\r\n\r\n  x\t\ty  \n",
    "The capital of France is Paris.",
    "I'm you'RE they'Ve we'LL he'D it'S don'T 'ſ 's' ''s",
    "1 12 123 1234 12345 0.5 1,000,000 ٣٤٥٦ ५६७८ ⅷ ½ ²³",
    "int main() { return (a[3] << 2) ^ ~b; }\n\n\t\t// comment\n",
    "    indented\n        more\n\n\n    less   \n   ",
    "https://example.org/?q=1&r=%20#frag user@example.com",
    "naïve café résumé Ångström ﬁne ﬃ ß ẞ İı ǅ",
    "e\u0301 n\u0303 a\u0308\u0301 \u0301\u0301 \u200d\u200c",
    "日本語のテキスト、カタカナ。漢字 한국어 中文 繁體",
    "Привет мир! Γειά σου Κόσμε שלום עולם مرحبا بالعالم नमस्ते สวัสดี",
    "👩‍👩‍👧‍👦 👍🏽 🇫🇷 ☃️ 🫠 🫨 🪿",
    "\u180e \u180e\u180ea \u0085\u0085x \u00a0\u00a0y \u2028\u2029 \u3000z \u200b \ufeff",
    "\u1c89\u1c8a\ua7cb \U00016d40\U00016d41 \U000105c0 \U0002ebf0 \U00031350 \U0001e5d0\U0001e5f1\U0001e5ff",
    "\x00\x01\x02\x7f\x80\x9f\xad",
    "\ud7ff\ue000\uffff\ufffd\U00010000\U0010ffff",
    "<|endoftext|><|user|>\nhi<|assistant|>[gMASK]<sop>  <|system|> <|endoftext",
    "<<|user|>> <|user|<|user|>|> [gMASK [gMASK]] <think></think><think",
    "<｜begin▁of▁sentence｜>a<｜User｜>b<｜Assistant｜><｜end▁of▁sentence｜>",
    "word wordy aword word. éword word1 word_ (word) word",
    "  left  left  right  right \n both \t both  leftright both",
    "Caps caps CAPS longer long longest longe",
    "a" * 300,
    "ab" * 200 + " " * 200 + "\n" * 50 + " ",
    "=" * 100 + "-" * 99 + "\r\n",
    "x" + "\u0301" * 120,
    "9" * 1000,
]

# What random texts are made of, each drawn as often as the others.
FRAGMENTS = [
    lambda r: chr(r.randrange(0x20, 0x7F)),
    lambda r: r.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    lambda r: r.choice(["the ", " and", " of", "ing ", " return", "def ", "self.", "int ", "'s", "'LL", "'d "]),
    lambda r: r.choice([" ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028", "\u3000"]),
    lambda r: r.choice(" \n") * r.randrange(1, 9),
    lambda r: str(r.randrange(10 ** r.randrange(1, 7))),
    lambda r: r.choice(["_", "-", "--", "...", "::", "->", "!=", "(", ")", "[", "]", "{", "}", "<", ">", "|", "\\", "/", "'", '"']),
    lambda r: chr(r.randrange(0x80, 0x800)),
    lambda r: chr(r.choice([r.randrange(0x800, 0xD800), r.randrange(0xE000, 0x10000)])),
    lambda r: chr(r.randrange(0x10000, 0x20000)),
    lambda r: chr(r.randrange(0x20000, 0x110000)),
    lambda r: chr(r.randrange(0x300, 0x370)),
    lambda r: chr(r.choice([r.randrange(0x3040, 0x3100), r.randrange(0x4E00, 0x9FB0)])),
    lambda r: chr(r.randrange(0x1F300, 0x1FB00)),
    lambda r: r.choice(["\u200d", "\ufe0f", "\u0301", "\u093f", "\u0e31", "\ufeff"]),
    lambda r: chr(r.choice([r.randrange(0x31350, 0x323B0), r.randrange(0x11F00, 0x11F60), r.randrange(0x1E4D0, 0x1E600), 0xA7CB, 0x1C89, 0x10D45])),
    lambda r: r.choice(["<|user|>", "<|endoftext|>", "[gMASK]", "<sop>", "<think>", "<|", "|>", "<｜User｜>", "<｜"]),
    lambda r: r.choice(["word", "left", "right", "both", "long", "longer", "caps"]),
]


def random_text(r, length):
    return "".join(r.choice(FRAGMENTS)(r) for _ in range(r.randrange(1, length)))


def training_texts():
    for path in sorted([*ROOT.glob("src/**/*.h"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]):
        yield path.read_text(encoding="utf-8")
    yield from HAND_PICKED * 5


def train(pre_tokenizer, added_tokens, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    tokenizer.add_tokens(added_tokens)
    return tokenizer


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(pattern, behavior, invert)


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **options})


def special(*contents):
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def glm():
    """One split, then ByteLevel; the added tokens of GLM-4.5 and later."""
    added = special(
        "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"
    ) + [AddedToken(content, special=False, normalized=False) for content in ("<think>", "</think>")]
    tokenizer = train(
        pre_tokenizers.Sequence([split(Regex(GLM_PATTERN)), byte_level()]), added, 1000
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def deepseek():
    """Three splits, then ByteLevel; a template that adds BOS; merges as strings and an empty normalizer, as DeepSeek's files have."""
    added = special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>") + [
        AddedToken(content, special=False, normalized=False) for content in ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
    ]
    tokenizer = train(
        pre_tokenizers.Sequence([split(Regex(pattern)) for pattern in DEEPSEEK_PATTERNS] + [byte_level()]), added, 1000
    )
    bos = "<｜begin▁of▁sentence｜>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def flags():
    """Every flag of added tokens, ByteLevel's own pattern and prefix space, a string split that removes what it finds."""
    added = [
        AddedToken("word", single_word=True, normalized=True),
        AddedToken("left", lstrip=True, normalized=False),
        AddedToken("right", rstrip=True, normalized=True),
        AddedToken("both", lstrip=True, rstrip=True, normalized=False, special=True),
        AddedToken("long", normalized=False),
        AddedToken("longer", normalized=False),
        AddedToken("longest", normalized=True),
        AddedToken("é", normalized=True),  # in the byte alphabet: decodes to the byte 0xE9
        AddedToken("caps", single_word=True, lstrip=True, rstrip=True, normalized=False),
        AddedToken("日本", special=True, normalized=True),
        AddedToken("<|endoftext|>", special=True, normalized=False),
        AddedToken("in", normalized=False),  # a token of the model as well
    ]
    pre_tokenizer = pre_tokenizers.Sequence(
        [split("::", "removed"), split(Regex(r"[#/]+"), "isolated", invert=True), byte_level(add_prefix_space=True, use_regex=True)]
    )
    return rewritten(train(pre_tokenizer, added, 700), ignoring_merges)


def rewritten(tokenizer, change):
    written = json.loads(tokenizer.to_str())
    change(written)
    return Tokenizer.from_str(json.dumps(written))


def as_deepseek_writes(written):
    written["normalizer"] = {"type": "Sequence", "normalizers": []}
    written["model"]["merges"] = ["#version: 0.2"] + [" ".join(pair) for pair in written["model"]["merges"]]


def ignoring_merges(written):
    written["model"]["ignore_merges"] = True
    # A token that no merge leads to: only a whole piece becomes it.
    vocab = written["model"]["vocab"]
    unmerged = [token for token in vocab if len(token) > 4][:100]
    written["model"]["merges"] = [pair for pair in written["model"]["merges"] if "".join(pair) not in unmerged and not set(pair) & set(unmerged)]


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def fnv1a(values, state):
    for value in values:
        state = (state ^ value) * 0x100000001B3 % 2**64
    return state


def code_point_hashes(tokenizer):
    """Per 4096 code points, over texts of 16 each: the ids, then their number."""
    hashes = []
    for first in range(0, 0x110000, 4096):
        state = 0xCBF29CE484222325
        for start in range(first, first + 4096, 16):
            text = "".join(f"a{chr(c)}1 {chr(c)}b{chr(c)}\n" for c in range(start, start + 16) if not 0xD800 <= c < 0xE000)
            ids = encode(tokenizer, text)
            state = fnv1a([*ids, len(ids)], state)
        hashes.append(f"{state:016x}")
    return hashes


def random_ids(r, tokenizer):
    size = tokenizer.get_vocab_size()
    ids = [r.randrange(size + 3) for _ in range(r.randrange(0, 20))]
    # Single bytes make characters that are cut anywhere.
    bytes_only = [tokenizer.token_to_id(c) for c in sorted(pre_tokenizers.ByteLevel.alphabet())]
    high = [tokenizer.token_to_id(c) for c in "ĠðŁĺĢãģĤÃ©íłĢôıĤÀàĢ"]
    kind = r.randrange(3)
    if kind == 1:
        ids = [r.choice(bytes_only) for _ in ids]
    if kind == 2:
        ids = [r.choice(high) if r.random() < 0.8 else i for i in ids]
    return [i for i in ids if i is not None]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main():
    r = random.Random(3)
    texts = HAND_PICKED + [random_text(r, 40) for _ in range(1000)]
    write(FOLDER / "texts.json", texts)
    for make in (glm, deepseek, flags):
        tokenizer = make()
        folder = FOLDER / make.__name__
        written = json.loads(tokenizer.to_str())
        if make is deepseek:
            as_deepseek_writes(written)
        write(folder / "tokenizer.json", written)
        decoded = []
        for ids in [random_ids(r, tokenizer) for _ in range(400)]:
            decoded.append([ids, tokenizer.decode(ids, False), tokenizer.decode(ids, True)])
        golden = {
            "encoded": [encode(tokenizer, text) for text in texts],
            "decoded": decoded,
            "code_point_hashes": code_point_hashes(tokenizer),
        }
        write(folder / "golden.json", golden)


if __name__ == "__main__":
    main()
