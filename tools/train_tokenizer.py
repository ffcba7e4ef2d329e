#!/usr/bin/env python3
"""Trains the bundled model's tokenizer: byte-level BPE with GLM's pre-tokenizer and special tokens.

    python -m venv /tmp/oracle && /tmp/oracle/bin/pip install tokenizers==0.23.3
    /tmp/oracle/bin/python tools/train_tokenizer.py CORPUS.jsonl.xz FOLDER [--heldout HELDOUT.jsonl.xz]

Writes tokenizer.json, tokenizer_config.json and chat_template.jinja to FOLDER; transformers' AutoTokenizer loads them. The same
corpus gives the same files.

The vocabulary, in the order of its ids: 256 bytes; the numbers 00 to 99 and 000 to 999, so that every group of up to three digits
is one token; merges trained on the first 20 kB of 2,500 documents; merges for those of the 2,000 most frequent words that did not
become one token with their leading space; GLM's special tokens.
"""

import argparse
import collections
import itertools
import json
import lzma
import pathlib
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

GLM_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
]  # fmt: skip
OTHER_ADDED_TOKENS = ["<think>", "</think>"]
VOCABULARY = 8192
DOCUMENTS = 2500
DOCUMENT_BYTES = 20_000
COMMON_WORDS = 2000
DIGITS = "0123456789"

CHAT_TEMPLATE = """[gMASK]<sop>
{%- for message in messages -%}
<|{{ message.role }}|>
{{ message.content }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
{% endif -%}
"""


def read_documents(path):
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def head(text):
    return text.encode()[:DOCUMENT_BYTES].decode(errors="ignore")


def glm_pre_tokenizer():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GLM_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def number_merges():
    """00 to 99 first, then 000 to 999 from the pair in them that merges first."""
    pairs = list(itertools.product(DIGITS, DIGITS))
    triples = itertools.product(DIGITS, DIGITS, DIGITS)
    return pairs + [(a + b, c) if a + b <= b + c else (a, b + c) for a, b, c in triples]


def trained_merges(texts, count):
    """Numbers are left out: they have merges of their own."""
    tokenizer = Tokenizer(models.BPE())
    no_numbers = pre_tokenizers.Split(Regex(r"\p{N}+"), "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([no_numbers, glm_pre_tokenizer()])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + count, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def common_words(texts):
    counts = collections.Counter(word for text in texts for word in re.findall(r"(?<= )[a-z]{3,12}(?=[ ,.\n])", text))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:COMMON_WORDS]]


def vocabulary_of(merges):
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    return {token: id for id, token in enumerate(dict.fromkeys(tokens))}


def missing_merges(merges, words):
    """Merges that, appended, make each word one token. Those before them are never disturbed: ranks only grow."""
    model = models.BPE(vocab=vocabulary_of(merges), merges=merges)
    tokenizer = Tokenizer(model)
    appended = {}
    for word in words:
        parts = [token.value for token in tokenizer.model.tokenize("Ġ" + word)]
        while len(parts) > 1:
            # What was appended for earlier words applies to this one too, in its order.
            known = [pair for pair in appended if pair in set(zip(parts, parts[1:]))]
            pair = known[0] if known else (parts[0], parts[1])
            appended.setdefault(pair, None)
            merged = []
            while parts:
                if len(parts) > 1 and (parts[0], parts[1]) == pair:
                    merged.append(parts[0] + parts[1])
                    parts = parts[2:]
                else:
                    merged.append(parts[0])
                    parts = parts[1:]
            parts = merged
    return list(appended)


def choose_merges(texts):
    """As many trained merges as leave room for the words' own."""
    size = VOCABULARY - len(SPECIAL_TOKENS) - len(OTHER_ADDED_TOKENS)
    numbers, words = number_merges(), common_words(texts)
    merges = numbers + trained_merges(texts, size - 256 - len(numbers))
    while True:
        complete = merges + missing_merges(merges, words)
        excess = len(vocabulary_of(complete)) - size
        if excess <= 0:
            return complete, words
        merges = merges[:-excess]


def make_tokenizer(merges):
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary_of(merges), merges=merges))
    tokenizer.pre_tokenizer = glm_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in OTHER_ADDED_TOKENS])
    return tokenizer


def check(tokenizer, words):
    assert tokenizer.get_vocab_size() == VOCABULARY == len(set(tokenizer.get_vocab().values()))
    for number in range(1000):
        assert len(tokenizer.encode(f"{number:03}").ids) == 1, number
    for word in words:
        assert len(tokenizer.encode(" " + word).ids) == 1, word
    assert len(words) >= 1500


def write(folder, tokenizer):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16384,
        "padding_side": "left",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def bytes_per_token(tokenizer, texts):
    texts = list(texts)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
    return sum(len(text.encode()) for text in texts) / tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--heldout", type=pathlib.Path, help="report bytes per token on these documents")
    arguments = parser.parse_args()
    texts = [head(text) for text in itertools.islice(read_documents(arguments.corpus), DOCUMENTS)]
    merges, words = choose_merges(texts)
    tokenizer = make_tokenizer(merges)
    check(tokenizer, words)
    write(arguments.folder, tokenizer)
    print(f"{VOCABULARY} tokens, trained on {sum(len(t.encode()) for t in texts)} bytes of {len(texts)} documents")
    if arguments.heldout:
        print(f"{bytes_per_token(tokenizer, read_documents(arguments.heldout)):.3f} bytes per token on {arguments.heldout}")


if __name__ == "__main__":
    main()
