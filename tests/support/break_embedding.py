#!/usr/bin/env python3
"""Makes a token's embedding NaN in a model folder of one shard: break_embedding.py FOLDER TOKEN. Needs Python's own library."""
import json, pathlib, struct, sys

path, token = pathlib.Path(sys.argv[1]) / "model.safetensors", int(sys.argv[2])
data = bytearray(path.read_bytes())
size = struct.unpack("<Q", data[:8])[0]
entry = json.loads(data[8 : 8 + size])["model.embed_tokens.weight"]
begin, end = entry["data_offsets"]
row = (end - begin) // entry["shape"][0]
first = 8 + size + begin + token * row
data[first : first + row] = b"\xff" * row  # all bits set: NaN in F32, F16 and BF16
path.write_bytes(data)
