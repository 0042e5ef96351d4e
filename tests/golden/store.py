"""Cases with small arrays of integers in one compressed file, read without pickles."""

import json
from math import prod
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def save(name, cases):
    """Writes a list of dicts of JSON values and arrays of integers; arrays of one name lie one behind the other."""
    flat = {}
    for case in cases:
        for key, value in case.items():
            if isinstance(value, np.ndarray):
                whole = np.round(value).astype(np.int32)
                assert np.array_equal(whole, value), f"{key} must hold integers"
                flat.setdefault(key, []).append(whole.ravel())
    shapes = [{k: v.shape if isinstance(v, np.ndarray) else v for k, v in c.items()} for c in cases]
    arrays = {key: np.concatenate(parts) for key, parts in flat.items()}
    kinds = (np.int8, np.int16, np.int32)
    arrays = {
        k: a.astype(next(t for t in kinds if np.all(a == a.astype(t)))) for k, a in arrays.items()
    }
    text = json.dumps({"arrays": list(flat), "cases": shapes}).encode()
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, text=np.frombuffer(text, np.uint8), **arrays)
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1000:.0f} kB")  # noqa: T201


def load(name):
    """Returns what `save` was given, arrays in float32."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        content = json.loads(file["text"].tobytes())
        flat = {key: file[key].astype(np.float32) for key in content["arrays"]}
    start = dict.fromkeys(flat, 0)
    for case in content["cases"]:
        for key in flat.keys() & case.keys():
            end = start[key] + prod(case[key])
            case[key] = flat[key][start[key] : end].reshape(case[key])
            start[key] = end
    return content["cases"]
