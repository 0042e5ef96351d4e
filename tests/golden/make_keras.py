"""Makes keras.npz: what Keras computes on its JAX backend, in integers, so that tests can ask for equality.

Transposed convolutions with both paddings, every output padding and none, strides or dilation; plain convolutions with
groups; one layer in each data format.

Made with keras 3.15.1, jax 0.10.1, Python 3.11; in tests/: `KERAS_BACKEND=jax python -m golden.make_keras`
"""

from itertools import product

import numpy as np
from golden import store


def case(random, name, data_format="channels_last", **arguments):
    import keras

    rank = len(arguments["kernel_size"])
    layer = getattr(keras.layers, name)(**arguments, data_format=data_format)
    channels = 2 * arguments.get("groups", 1)
    spatial = [int(n) for n in random.integers(3, 7, rank)]
    x = random.integers(-4, 5, (2, *spatial, channels))
    seen = np.moveaxis(x, -1, 1) if data_format == "channels_first" else x
    layer.build(seen.shape)
    kernel, bias = (random.integers(-4, 5, w.shape) for w in layer.get_weights())
    layer.set_weights([kernel, bias])
    y = np.asarray(layer(seen.astype(np.float32)))
    y = np.moveaxis(y, 1, -1) if data_format == "channels_first" else y
    kept = {n: getattr(layer, n) for n in ("strides", "padding", "dilation_rate")}
    kept["output_padding"] = getattr(layer, "output_padding", None)
    kept["groups"] = getattr(layer, "groups", 1)
    return {"layer": name, "attributes": kept, "x": x, "kernel": kernel, "bias": bias, "y": y}


def main():
    random = np.random.default_rng(20161017)
    cases = []
    for padding, k, s in product(("same", "valid"), (1, 2, 3, 4, 5), (1, 2, 3)):
        for op in (None, *range(s)):
            options = {"kernel_size": (k,), "strides": (s,), "padding": padding}
            cases.append(case(random, "Conv1DTranspose", filters=3, output_padding=op, **options))
    for padding, d, op in product(("same", "valid"), ((2, 3), (3, 1)), (None, 0)):
        options = {"kernel_size": (3, 2), "dilation_rate": d, "padding": padding}
        cases.append(case(random, "Conv2DTranspose", filters=3, output_padding=op, **options))
    for padding, op in product(("same", "valid"), (None, (1, 0, 2))):
        options = {"kernel_size": (3, 2, 4), "strides": (2, 1, 3), "padding": padding}
        cases.append(case(random, "Conv3DTranspose", filters=2, output_padding=op, **options))
    options = {"kernel_size": (3, 4), "strides": (2, 3), "padding": "same"}
    cases.append(case(random, "Conv2DTranspose", "channels_first", filters=3, **options))
    for padding, s, g in product(("same", "valid"), (1, 2), (1, 2)):
        options = {"kernel_size": (3, 2), "strides": (s, s), "padding": padding, "groups": g}
        cases.append(case(random, "Conv2D", filters=4, **options))
    cases.append(
        case(random, "Conv1D", filters=3, kernel_size=(3,), padding="causal", strides=(2,))
    )
    store.save("keras", cases)


if __name__ == "__main__":
    main()
