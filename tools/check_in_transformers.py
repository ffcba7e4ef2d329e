#!/usr/bin/env python3
"""Loads a model folder in Hugging Face transformers and compares its logits and index sets with `indexcache trace`.

    python -m venv /tmp/oracle && /tmp/oracle/bin/pip install torch==2.11.0 transformers==5.17.0 safetensors accelerate
    /tmp/oracle/bin/python tools/check_in_transformers.py MODEL [--ids FILE.json] [--pattern P]

Both run in fp32 on the CPU, an FP8 folder's weights dequantised by this script. An FP8 folder is then also loaded as it stands, by
transformers' own quantiser, and its loss on the same ids compared. Exit code 0: every tensor that transformers wants is there, index sets are the same wherever the
k-th index score is clear of the next, and logits agree. A query whose k-th score ties to within rounding may select either way,
and changes every later token with it: logits are then compared up to the first such query.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

from transformers_oracle import FULL, Oracle

STORED_LOSS_TOLERANCE = 0.02  # nats a token: transformers computes an FP8 folder in bf16
CLEAR_MARGIN = 1e-5  # of index scores, relative; fp32 sums of some hundred terms stay well below


def trace(arguments, config, ids):
    with tempfile.TemporaryDirectory() as work:
        out, id_file = pathlib.Path(work) / "trace.safetensors", pathlib.Path(work) / "ids.json"
        id_file.write_text(json.dumps(ids))
        command = [arguments.indexcache, "trace", arguments.model, "--ids", id_file, "--out", out, "--pattern", arguments.pattern]
        if config["model_type"] == "glm_moe_dsa":
            command += ["--latent-norm-eps", "1e-6"]  # what transformers has, whatever rms_norm_eps says
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != 0:
            sys.exit(finished.stderr.strip())
        return load_file(out)


def check_tensors(oracle):
    shared = tuple(f"model.layers.{layer}.self_attn.indexer." for layer, source in enumerate(oracle.sources) if source != FULL)
    missing = [name for name in oracle.missing if not name.startswith(shared)]
    for name in missing:
        print(f"missing tensor: {name}")
    for name in oracle.unexpected:
        print(f"tensor transformers does not read: {name}")
    return not missing


def check_index_sets(run, traced):
    """Whether all differences are ties, and the first query that differs (T if none)."""
    good, first = True, len(run.logits)
    for layer, expected in run.index_sets.items():
        differs = (expected != traced[f"index_set.{layer}"]).any(-1)
        unclear = differs & (run.index_margins[layer] < CLEAR_MARGIN)
        print(f"layer {layer}: {int(differs.sum())} of {len(differs)} index sets differ, {int(unclear.sum())} of them by a tie")
        if differs.any():
            first_here = int(differs.nonzero()[0])
            # Later differences may follow from an earlier tie; only a clear one at the very start is an error.
            good &= first_here > first or bool(unclear[first_here])
            first = min(first, first_here)
    return good, first


def mean_loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:])).item()


def check_as_stored(folder, ids, logits):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        stored = mean_loss(model(torch.tensor([ids])).logits[0], ids)
    ours = mean_loss(logits, ids)
    missing = len(info["missing_keys"])
    print(f"loaded as it is stored: {missing} tensors missing, loss {stored:.4f}, by indexcache {ours:.4f}")
    return missing == 0 and abs(stored - ours) <= STORED_LOSS_TOLERANCE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("--ids", help="JSON array of token ids; default: random ones, three times index_topk long")
    parser.add_argument("--pattern", default="model", help="model, full, FSSF... or -1,0,...")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of logits, relative to the largest (default %(default)s)")
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--indexcache", default=root / "build/cpu/indexcache", help="the command (default %(default)s)")
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()

    oracle = Oracle(arguments.model, arguments.pattern)
    config = oracle.config
    if arguments.ids:
        ids = json.loads(pathlib.Path(arguments.ids).read_text())
    else:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(config["vocab_size"], (3 * oracle.top_k,), generator=generator).tolist()
    good = check_tensors(oracle)
    run = oracle.run(torch.tensor(ids))
    traced = trace(arguments, config, ids)
    sets_good, first = check_index_sets(run, traced)
    largest = run.logits.abs().max().item()
    error = (run.logits[:first] - traced["logits"][:first]).abs().max().item() if first else 0.0
    print(f"logits of {first} of {len(ids)} tokens compared: largest error {error:.2e}, largest logit {largest:.2f}")
    good &= sets_good and error <= arguments.tolerance * max(1.0, largest)
    if "quantization_config" in json.loads((pathlib.Path(arguments.model) / "config.json").read_text()):
        good &= check_as_stored(arguments.model, ids, traced["logits"])
    print("same" if good else "DIFFERENT")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
