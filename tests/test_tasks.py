"""Tasks that train on targets or ascend gradients: their parts against definitions, and their configs in small."""

from functools import reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx

from experiments import config, data, records
from experiments.__main__ import main
from experiments.tasks import input_gradients, segmentation, superresolution
from experiments.upsamplers import average_pool
from tconvjax import conv, conv_transpose

CONFIGS = Path(__file__).parent.parent / "configs"
pytestmark = pytest.mark.usefixtures("promotion")
FLAT = {2: (1.0, 1.0), 3: (1.0, 2.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0)}  # equal phase gains


@pytest.mark.usefixtures("x64")
@each(("kernel_size", "halving"), [(2, None), (3, None), (4, None), (3, 3), (4, 3), (4, 4)])
def test_predicted_drift_is_where_a_pixel_comes_out(kernel_size, halving):
    """Of levels with positive kernels of equal gains, whose centers of gravity add up."""
    down = {} if halving is None else {"downsampler": "conv", "down_kernel_size": halving}
    options = segmentation.Options(kernel_size=kernel_size, levels=3, **down)

    def halved(x):
        if halving is None:
            return average_pool(x, (2,))
        return conv(x, jnp.array(FLAT[halving])[:, None, None], strides=2, padding="SAME")

    def doubled(x):
        kernel = jnp.array(FLAT[kernel_size])[:, None, None]
        return conv_transpose(x, kernel, strides=2, padding="SAME")

    places = np.arange(24, 32)  # one period of the levels
    pixels = jnp.asarray(np.eye(64)[places])[..., None]
    y = reduce(lambda x, f: f(x), [halved] * 3 + [doubled] * 3, pixels)[..., 0]
    centers = (y * jnp.arange(64)[None]).sum(1) / y.sum(1)
    drift = segmentation.predicted_drift(options)
    np.testing.assert_allclose(np.mean(centers - places), drift, atol=1e-9)


@pytest.mark.slow
@each(("kernel_size", "drift"), [(2, 0.0), (3, 3.5)])
def test_networks_drift_as_predicted(kernel_size, drift):
    options = segmentation.Options(kernel_size=kernel_size, levels=3)
    assert segmentation.predicted_drift(options) == drift

    @jax.jit
    def measured(key):
        model = segmentation.UNet(options, 1, nnx.Rngs(key))
        return segmentation.drift(model, 1, 3, jax.random.fold_in(key, 1))

    found = np.mean([measured(jax.random.key(seed)) for seed in range(6)])
    assert abs(found - drift) < 0.5


def test_outlines_are_the_pixels_beside_others():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 1:6, 2:7] = True
    inner = np.zeros_like(mask)
    inner[0, 2:5, 3:6] = True
    np.testing.assert_array_equal(segmentation.outline(jnp.asarray(mask)), mask & ~inner)
    assert segmentation.overlap(jnp.asarray(mask), jnp.asarray(inner)) == 9 / 25
    assert segmentation.overlap(jnp.asarray(inner) & False, jnp.asarray(inner) & False) == 0


@each(("kernel_size", "evenness"), [(1, 0.0), (2, 1.0), (3, 1 / 4), (4, 1.0), (5, 4 / 9)])
def test_gradients_see_phases_as_their_taps_do(kernel_size, evenness):
    options = input_gradients.Options(kernel_size=kernel_size)
    energies = input_gradients.energy_by_phase(options, jax.random.key(0))
    assert abs(energies.min() / energies.max() - evenness) < 0.08


@pytest.mark.slow
def test_equal_layers_of_super_resolution_see_the_same():
    """And cost the same: a transposed convolution has the numbers of a sub-pixel convolution."""
    sizes = {}
    for name in ("subpixel_conv", "conv_transpose", "resize_conv"):
        options = superresolution.Options(upsampler=name, scale=3, features=8)
        network = superresolution.Network(options, 3, nnx.Rngs(0))
        assert network(jnp.zeros((1, 8, 8, 3))).shape == (1, 24, 24, 3)
        sizes[name] = network.last.kernel[...].size
    assert sizes["subpixel_conv"] == sizes["conv_transpose"] == 9 * sizes["resize_conv"]


@pytest.mark.slow
@each(
    ("name", "metric", "gain"),
    [
        ("family_glyphs", "frechet_classifier_distance", -3.0),
        ("spectra", "frechet_classifier_distance", -1.0),
        ("discriminator", "frechet_classifier_distance", -5.0),
        ("input_gradients", "activation", 0.3),
        ("segmentation", "iou", 0.2),
        ("superresolution", "psnr_gain", 2.0),
    ],
)
def test_runs_learn_and_leave_everything_behind(name, metric, gain, tmp_path, capsys):
    arguments = ["run", str(CONFIGS / f"{name}.toml"), "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "report" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    run = records.read_complete(folder)
    for at in run.summary["variants"].values():
        better = at["final"][metric]["mean"] - at["init"][metric]["mean"]  # than no training
        assert better * np.sign(gain) > abs(gain)
    assert all(claim["margin"]["mean"] > 0 for claim in run.summary["claims"])
    pictures = {path.name for path in folder.glob("*.png")}
    wanted = {"panels.png"} if name == "input_gradients" else {"samples.png", "spectrum.png"}
    assert wanted | {"curves.png"} <= pictures


@pytest.mark.refuses
def test_data_that_do_not_go_with_a_task_are_refused():
    for module, source, said in (
        (segmentation, {"source": "digits"}, "needs images with masks"),
        (superresolution, {"source": "digits", "size": 16}, "needs images of 24 pixels or more"),
    ):
        with pytest.raises(ValueError, match=said):
            module.check(data.load(source), module.Options())
    shapes = data.load({"source": "shapes", "count": 60, "size": 24})
    assert segmentation.check(shapes, segmentation.Options(levels=4)) == [
        "levels: 2^4 must divide the images, of 24 x 24 pixels"
    ]
    options = superresolution.Options(scale=3)
    shapes = data.load({"source": "shapes", "count": 60, "size": 32})
    assert "scale: must divide the images" in superresolution.check(shapes, options)[0]
    options = segmentation.Options(upsampler="unpool_conv", downsampler="average")
    assert "puts pixels back where 'max_pool' found them" in options.errors()[0]
    with pytest.raises(
        config.ConfigError, match="classifier_steps: task 'segmentation' takes no classifier"
    ):
        config.load(CONFIGS / "segmentation.toml", ["classifier_steps=3"])
