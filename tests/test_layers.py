"""The layers of both module sets: against Flax, against each other, against their functions."""

import dataclasses
import inspect
import re
from itertools import product

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import each
from flax import nnx

import tconvjax
from tconvjax import _layers as layers
from tconvjax import conv, conv_transpose, linen, resize_conv, subpixel_conv
from tconvjax import nnx as tnn

NAMES = ("Conv", "ConvTranspose", "ResizeConv", "SubpixelConv")
WITHOUT_KERNEL = ("BlurPool", "MaxBlurPool", "MaxUnpool", "Hold", "BilinearAdditive", "Upsample")
OF_SEVERAL = ("PixelConvTranspose", "LargeContextConvTranspose", "Carafe", "DySample")


def draw(*shape):
    return jnp.asarray(np.random.default_rng(20161017).normal(size=shape).astype("f"))


def twins(name, in_features, out_features, *args, **options):
    """A layer of each set with the same random parameters, as functions of x."""
    one = getattr(tnn, name)(in_features, out_features, *args, rngs=nnx.Rngs(0), **options)
    if one.bias is not None:
        one.bias[...] = draw(*one.bias.shape)
    two = getattr(linen, name)(out_features, *args, **options)
    params = {n: p[...] for n, p in (("kernel", one.kernel), ("bias", one.bias)) if p is not None}
    return one, lambda x, **at_call: two.apply({"params": params}, x, **at_call)


TABLE = [
    ("Conv", (4, 6, (3, 2), (2, 1)), {"padding": ((1, 2), 0), "feature_group_count": 2}),
    ("Conv", (4, 6, (3, 3)), {"padding": "CIRCULAR", "kernel_dilation": (1, 2), "use_bias": False}),
    ("Conv", (4, 6, [3, 3]), {"padding": [2, [1, 0]], "input_dilation": (2, 1)}),
    ("ConvTranspose", (4, 6, (3, 2), (2, 3)), {"padding": 1, "output_padding": (1, 2)}),
    (
        "ConvTranspose",
        (4, 6, (4, 3), 2),
        {"transpose_kernel": True, "feature_group_count": 2, "padding_mode": "reflect"},
    ),
    ("ConvTranspose", (4, 6, (3, 3), 2), {"padding": 1, "padding_convention": "dilated"}),
    ("ResizeConv", (4, 6, (3, 3), (2, 3)), {"method": "cubic", "padding_mode": "replicate"}),
    ("ResizeConv", (4, 6, (2, 3), 2), {"feature_group_count": 2, "implementation": "plain"}),
    ("SubpixelConv", (4, 6, (3, 2), (2, 3)), {"order": "DCR"}),
    ("SubpixelConv", (4, 6, (3, 3), 2), {"padding_mode": "circular", "use_bias": False}),
]


@pytest.mark.parametrize(("name", "args", "options"), TABLE)
def test_both_sets_give_identical_numbers(name, args, options):
    one, two = twins(name, *args, **options)
    x = draw(2, 5, 6, 4)
    np.testing.assert_array_equal(one(x), two(x))
    fresh = getattr(linen, name)(*args[1:], **options).init(jax.random.key(0), x)["params"]
    assert fresh["kernel"].shape == one.kernel.shape
    for made in (fresh["kernel"], one.kernel[...]):  # the same initializer, if not the same draw
        np.testing.assert_allclose(made.std(), one.kernel[...].std(), rtol=0.35)


@each("name", (*NAMES, *WITHOUT_KERNEL, *OF_SEVERAL))
def test_both_sets_take_the_same_arguments(name):
    parameters = inspect.signature(getattr(tnn, name).__init__).parameters
    here = {n: p.default for n, p in parameters.items()}
    for n in ("self", "in_features", "rngs", "kernel_metadata", "bias_metadata", "options"):
        here.pop(n, None)
    if "out_features" in here:
        here = {"features": here.pop("out_features"), **here}
    required = dataclasses.MISSING
    there = {
        f.name: inspect.Parameter.empty if f.default is required else f.default
        for f in dataclasses.fields(getattr(linen, name))
        if f.name not in {"parent", "name", "options"}
    }
    for hook in ("promote_dtype", "conv_general_dilated", "conv_general_dilated_cls"):
        here.pop(hook, None)  # each Flax has its own, at another place
        there.pop(hook, None)
    assert list(there) == list(here)
    assert {n: there[n] for n in here} == here


@each("name", (*NAMES, *WITHOUT_KERNEL, *OF_SEVERAL))
def test_both_sets_explain_their_arguments_in_the_same_words(name):
    def explained(layer, section):
        text = layer.__doc__.partition(f"    {section}:\n")[2].partition("\n\n")[0]
        pairs = re.findall(r"^ {6}\**(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
        return {argument: " ".join(words.split()) for argument, words in pairs}

    here = explained(getattr(tnn, name), "Args")
    there = explained(getattr(linen, name), "Attributes")
    fields = {f.name for f in dataclasses.fields(getattr(linen, name))} - {"parent", "name"}
    assert there.keys() == fields
    of_both = here.keys() & there.keys() - {"promote_dtype", "options", "groups"}
    assert {n: there[n] for n in of_both} == {n: here[n] for n in of_both}
    parameters = inspect.signature(getattr(tnn, name).__init__).parameters.keys() - {"self"}
    assert here.keys() == parameters


def test_an_int_for_the_kernel_size_is_one_axis_and_says_so():
    for options in ({"strides": (2, 2)}, {"padding": ((1, 1), (1, 1))}):
        with pytest.raises(ValueError, match=r"one spatial axis, as in Flax; .*Write .*\(3, 3\)"):
            tnn.ConvTranspose(8, 3, 3, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=r"ResizeConv: kernel_size=5 .* scale=\(2, 2, 2\)"):
        linen.ResizeConv(3, 5, (2, 2, 2))


@each("name", NAMES)
def test_a_layer_has_every_option_of_its_function(name):
    function = {
        "Conv": conv,
        "ConvTranspose": conv_transpose,
        "ResizeConv": resize_conv,
        "SubpixelConv": subpixel_conv,
    }[name]
    parameters = inspect.signature(getattr(tnn, name).__init__).parameters
    options = set(inspect.signature(function).parameters) - {"x", "kernel", "output_shape"}
    assert options <= set(parameters)


@each("name", ("Conv", "ConvTranspose"))
def test_the_call_has_the_names_of_flax(name):
    for ours, theirs in ((tnn, nnx), (linen, flax.linen)):
        names, wanted = (
            list(inspect.signature(getattr(m, name).__call__).parameters) for m in (ours, theirs)
        )
        assert names[: len(wanted)] == wanted


@each(
    "options",
    (
        {},
        {"padding": "CIRCULAR", "dtype": "bfloat16"},
        {"padding": ((1, 0), (2, 1))},
        {"input_dilation": 2, "padding": 1},
    ),
)
def test_the_hook_of_flax_computes_in_place_of_ours(options):
    x, calls = draw(2, 3, 6, 5, 4), []

    def hook(lhs, rhs, strides, padding, **keywords):
        calls.append((lhs.shape, strides, padding))
        return 2 * jax.lax.conv_general_dilated(lhs, rhs, strides, padding, **keywords)

    options |= {"strides": (2, 1), "feature_group_count": 2, "use_bias": False}
    twice, once = (
        tnn.Conv(4, 6, (3, 2), **options, **h, rngs=nnx.Rngs(0))
        for h in ({"conv_general_dilated": hook}, {})
    )
    theirs = nnx.Conv(4, 6, (3, 2), **options, conv_general_dilated=hook, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(twice(x), theirs(x))
    assert calls[0] == calls[1]
    np.testing.assert_allclose(np.float32(twice(x)), 2 * np.float32(once(x)), rtol=0.02, atol=0.02)
    params = {"params": {"kernel": once.kernel[...]}}
    for hooks in ({"conv_general_dilated": hook}, {"conv_general_dilated_cls": lambda: hook}):
        np.testing.assert_array_equal(
            linen.Conv(6, (3, 2), **options, **hooks).apply(params, x), twice(x)
        )


def test_a_hook_beside_an_implementation_is_refused():
    for make in (
        lambda **o: tnn.Conv(4, 6, (3,), **o, rngs=nnx.Rngs(0)),
        lambda **o: linen.Conv(6, (3,), **o),
    ):
        with pytest.raises(
            ValueError, match="Conv: conv_general_dilated computes in place of an implementation"
        ):
            make(conv_general_dilated=print, implementation="phase")


def test_words_of_padding_have_any_case():
    x = draw(2, 5, 4)
    for word in ("same", "Valid", "circular"):
        small, large = (
            tnn.Conv(4, 6, (3,), padding=p, rngs=nnx.Rngs(0)) for p in (word, word.upper())
        )
        np.testing.assert_array_equal(small(x), large(x))
    np.testing.assert_array_equal(conv(x, draw(3, 4, 2), padding="same"), conv(x, draw(3, 4, 2)))


@each("name", ("Conv", "ConvTranspose"))
def test_arguments_are_those_of_flax_in_their_order(name):
    ours, theirs = (
        list(inspect.signature(getattr(m, name).__init__).parameters.values()) for m in (tnn, nnx)
    )
    assert [p.name for p in ours][: len(theirs)] == [p.name for p in theirs]
    for a, b in zip(ours, theirs, strict=False):
        assert a.kind == b.kind
        same = {"kernel_init", "bias_init"}  # other objects, or another initializer on purpose
        assert a.default == b.default or a.name in same, a.name
    assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(theirs) :])
    ours, theirs = (
        [f for f in dataclasses.fields(getattr(m, name)) if f.name not in {"parent", "name"}]
        for m in (linen, flax.linen)
    )
    assert [f.name for f in ours][: len(theirs)] == [f.name for f in theirs]
    for a, b in zip(ours, theirs, strict=False):
        assert a.default == b.default or a.name in {"kernel_init", "bias_init"}, a.name


# Everything that Flax accepts, in one dimension: every alignment of kernel, stride and period.
FLAX = {
    "Conv": [
        {"padding": p, "strides": s, "kernel_dilation": d}
        for p, s, d in product(
            ("SAME", "VALID", "SAME_LOWER", "CIRCULAR", "REFLECT", "CAUSAL", 1, ((2, 0),)),
            (1, 2),
            (1, 2),
        )
    ]
    + [{"padding": ((2, 1),), "input_dilation": 3, "strides": 2}],
    "ConvTranspose": [
        {"padding": p, "strides": s, "kernel_dilation": d, "transpose_kernel": i % 2 == 1}
        for i, (d, s, p) in enumerate(
            product((1, 2), (1, 2, 3), ("SAME", "VALID", "CIRCULAR", 1, ((2, 3),)))
        )  # five paddings: each meets both layouts of the kernel
    ],
}


@each("k", (1, 2, 3, 5))
@each("name", ("Conv", "ConvTranspose"))
def test_equals_flax_for_every_call_that_is_valid_there(name, k):
    """Also for kernels wider than a circular image; parameters are handed over unchanged."""
    x = draw(2, 5, 3)
    legacy = {"padding_convention": "dilated"} if name == "ConvTranspose" else {}
    tested, theirs, ours, flax_twins = [], [], [], []
    for options in FLAX[name]:
        layer = getattr(nnx, name)(3, 4, (k,), rngs=nnx.Rngs(1), **options)
        layer.bias[...] = jnp.arange(4.0)
        try:
            if jax.eval_shape(layer, x).size == 0:
                continue  # nothing is left under this kernel
        except ValueError:
            continue  # nor here, says lax
        tested.append(options)
        mine = getattr(tnn, name)(3, 4, (k,), rngs=nnx.Rngs(0), **options, **legacy)
        nnx.update(mine, nnx.state(layer))
        theirs.append(layer)
        ours.append(mine)
        variables = {"params": {"kernel": layer.kernel[...], "bias": layer.bias[...]}}
        flax_twins.append(
            lambda x, o=options, v=variables: getattr(linen, name)(4, (k,), **o, **legacy).apply(
                v, x
            )
        )
    run = lambda fs: jax.jit(lambda x: [f(x) for f in fs])(x)
    assert len(tested) > 0.8 * len(FLAX[name])
    everything = zip(tested, run(theirs), run(ours), run(flax_twins), strict=True)
    for options, want, got, got_linen in everything:
        np.testing.assert_allclose(got, want, atol=2e-5, err_msg=str(options))
        np.testing.assert_array_equal(got, got_linen, err_msg=str(options))


@each("name", ("Conv", "ConvTranspose"))
def test_equals_flax_in_two_dimensions_with_groups_and_mask(name):
    x = draw(2, 5, 6, 4)
    groups = {"feature_group_count": 2} if name == "Conv" else {"padding": "SAME"}
    mask = jnp.asarray(np.arange(3 * 2 * (2 if name == "Conv" else 4) * 6) % 3 > 0)
    for shape in ((3, 2, mask.size // 36, 6),):
        options = groups | {"mask": mask.reshape(shape).astype(jnp.float32), "strides": (2, 3)}
    theirs = getattr(nnx, name)(4, 6, (3, 2), rngs=nnx.Rngs(1), **options)
    ours = getattr(tnn, name)(4, 6, (3, 2), rngs=nnx.Rngs(0), **options)
    nnx.update(ours, nnx.state(theirs, nnx.Param))
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    variables = getattr(flax.linen, name)(6, (3, 2), **options).init(jax.random.key(2), x)
    want = getattr(flax.linen, name)(6, (3, 2), **options).apply(variables, x)
    got = getattr(linen, name)(6, (3, 2), **options).apply(variables, x)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_layers_are_their_functions_plus_bias():
    x = draw(5, 6, 4)
    paint, _ = twins("ConvTranspose", 4, 6, (3, 3), 2, padding=1, feature_group_count=2)
    want = conv_transpose(
        x, paint.kernel[...], strides=2, padding=1, feature_group_count=2, output_shape=(10, 11)
    )
    bias = paint.bias[...].reshape(1, 1, 6)
    np.testing.assert_allclose(paint(x, output_shape=(10, 11)), want + bias, atol=1e-5)
    gather, _ = twins("Conv", 4, 6, (3, 3), (1, 2), kernel_dilation=2, use_bias=False)
    want = conv(x, gather.kernel[...], strides=(1, 2), kernel_dilation=2)
    np.testing.assert_allclose(gather(x), want, atol=1e-6)
    enlarge, _ = twins("ResizeConv", 4, 6, (3, 3), (2, 3), method="linear")
    want = resize_conv(x, enlarge.kernel[...], scale=(2, 3), method="linear")
    np.testing.assert_allclose(enlarge(x), want + enlarge.bias[...].reshape(1, 1, 6), atol=1e-5)
    shuffle, _ = twins("SubpixelConv", 4, 6, (3, 3), (2, 3), order="DCR")
    assert shuffle.bias.shape == (36,)
    phases = conv(x, shuffle.kernel[...]) + shuffle.bias[...].reshape(1, 1, 36)
    want = tconvjax.pixel_shuffle(phases, (2, 3), order="DCR")
    np.testing.assert_allclose(shuffle(x), want, atol=1e-5)
    pool = tnn.BlurPool((2, 3), filter_size=3, padding_mode="circular")
    want = tconvjax.blur_pool(x, (2, 3), filter_size=3, padding_mode="circular")
    np.testing.assert_array_equal(pool(x), want)
    np.testing.assert_array_equal(linen.BlurPool((2, 3), 3, "circular").apply({}, x), want)


FIXED = {
    "BlurPool": ("blur_pool", (2, 3), {"filter_size": 3, "padding_mode": "circular"}),
    "MaxBlurPool": ("max_blur_pool", (2, 3), {"filter_size": 3, "padding_mode": "circular"}),
    "Hold": ("hold", (2, 3), {"order": 1, "padding_mode": "circular"}),
    "BilinearAdditive": ("bilinear_additive", (2, 1), {}),
}


@each("name", FIXED)
def test_layers_without_parameters_are_their_functions(name):
    x = draw(5, 6, 4)
    function, factors, options = FIXED[name]
    want = getattr(tconvjax, function)(x, factors, **options)
    np.testing.assert_array_equal(getattr(tnn, name)(factors, **options)(x), want)
    np.testing.assert_array_equal(getattr(linen, name)(factors, **options).apply({}, x), want)


SEVERAL = [
    ("PixelConvTranspose", (4, 6, (3, 5)), {"padding_mode": "circular"}),
    ("PixelConvTranspose", (4, 6, (3, 3)), {"use_bias": False, "dtype": jnp.bfloat16}),
    ("LargeContextConvTranspose", (4, 6, (7, 5), (2, 3)), {"small_kernel_size": (3, 1)}),
    ("LargeContextConvTranspose", (4, 6, (6, 6), 2), {"small_kernel_size": 2, "dtype": "bfloat16"}),
    ("Carafe", (4, (2, 3)), {"window": (3, 5), "padding_mode": "replicate", "use_bias": False}),
    ("DySample", (4, (2, 3)), {"groups": 2, "dynamic_scope": True}),
    ("DySample", (4, (3,)), {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args", "options"), SEVERAL)
def test_both_sets_give_identical_numbers_of_several_layers(name, args, options):
    x = draw(2, 5, 6, 4)
    one = getattr(tnn, name)(*args, rngs=nnx.Rngs(0), **options)
    params = nnx.to_pure_dict(nnx.state(one, nnx.Param))
    params = jax.tree.map(lambda p: 0.3 * draw(*p.shape), params)
    nnx.update(one, params)
    own = {"small_kernel_size", "window", "padding_mode", "groups", "dynamic_scope"}
    inner = {n: v for n, v in options.items() if n not in own}
    if name != "PixelConvTranspose":
        options = {n: v for n, v in options.items() if n in own} | {"options": inner}
    two = getattr(linen, name)(*args[1:], **options)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(two.init(jax.random.key(0), x)["params"]) == shapes(params)
    np.testing.assert_array_equal(two.apply({"params": params}, x), one(x))
    assert hash(two) == hash(two.copy())


@pytest.mark.slow
def test_several_layers_are_what_was_published():
    x = draw(8, 9, 4)
    one = tnn.PixelConvTranspose(4, 6, (3, 3), rngs=nnx.Rngs(0))
    kernels = [getattr(one, f"kernel_{i}")[...] for i in range(3)]
    np.testing.assert_array_equal(one(x), tconvjax.pixel_conv_transpose(x, kernels))
    one = tnn.LargeContextConvTranspose(4, 6, (7, 7), 2, rngs=nnx.Rngs(0))
    kernel = one.large.kernel[...] + jnp.pad(
        one.small.kernel[...], ((2, 2), (2, 2), (0, 0), (0, 0))
    )
    np.testing.assert_allclose(one(x), conv_transpose(x, kernel, strides=2), atol=1e-5)
    assert one.small.bias is None
    # At first kernels are averages of the window, and positions those of 'linear', nearly.
    one = tnn.Carafe(4, (2, 2), padding_mode="replicate", rngs=nnx.Rngs(0))
    box = np.ones((5, 5)) / 25
    around = jnp.pad(x, ((2, 2), (2, 2), (0, 0)), "edge")
    want = tconvjax.resize(tconvjax.upfirdn(around, jnp.asarray(box, "f")), (2, 2))
    np.testing.assert_allclose(one(x), want, atol=0.02)
    one = tnn.DySample(4, (2, 2), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(one(x), tconvjax.resize(x, (2, 2), method="linear"), atol=0.02)


@pytest.mark.slow
@each("transpose_kernel", (False, True))
def test_a_balanced_layer_keeps_constants_however_it_is_trained(transpose_kernel):
    options = {"transpose_kernel": transpose_kernel, "balanced": True}
    one, two = twins("ConvTranspose", 4, 6, (3, 5), (2, 3), **options)
    inside = lambda y: y[4:-4, 6:-6]
    flat = inside(one(jnp.ones((9, 9, 4))))
    assert jnp.ptp(flat, (0, 1)).max() < 1e-5
    free = tnn.ConvTranspose(
        4, 6, (3, 5), (2, 3), transpose_kernel=transpose_kernel, rngs=nnx.Rngs(0)
    )
    assert jnp.ptp(inside(free(jnp.ones((9, 9, 4)))), (0, 1)).max() > 0.1
    x = draw(2, 5, 6, 4)
    np.testing.assert_array_equal(one(x), two(x))
    # The gradient is one of balanced kernels: gains of all phases change alike.
    grads = jax.grad(lambda k: (two_of(k, options)(x) ** 2).sum())(one.kernel[...])
    gains = tconvjax.analysis.phase_gains(grads, (2, 3), transpose_kernel=transpose_kernel)
    assert jnp.abs(gains).max() > 0.1
    np.testing.assert_allclose(jnp.ptp(gains, (0, 1)), 0, atol=1e-3)


def two_of(kernel, options):
    layer = linen.ConvTranspose(6, (3, 5), (2, 3), use_bias=False, **options)
    return lambda x: layer.apply({"params": {"kernel": kernel}}, x)


@each("method", layers.UPSAMPLE_METHODS)
def test_upsample_switches_the_kind_and_keeps_the_size(method):
    x = draw(2, 5, 6, 4)
    one = tnn.Upsample(4, 6, (3, 2), (2, 3), method=method, padding_mode="replicate",
                       rngs=nnx.Rngs(0))  # fmt: skip
    assert one(x).shape == (2, 10, 18, 6)
    name, own = layers.upsampler("", (3, 2), (2, 3), method, None, {})
    alone = getattr(tnn, name)(
        4, 6, (3, 2), (2, 3), padding_mode="replicate", rngs=nnx.Rngs(0), **own
    )
    np.testing.assert_array_equal(one(x), alone(x))
    two = linen.Upsample(6, (3, 2), (2, 3), method, padding_mode="replicate")
    params = {"kernel": alone.kernel[...], "bias": alone.bias[...]}
    np.testing.assert_array_equal(two.apply({"params": {"layer": params}}, x), one(x))


OTHERS = {"MaxUnpool": {}, "FilteredActivation": {"activation": jnp.tanh}}  # without parameters
ARGUMENTS = {  # behind the channels; of every public layer
    **dict.fromkeys(("Conv", "PixelConvTranspose"), ((3, 3),)),
    **dict.fromkeys(("ConvTranspose", "ResizeConv", "SubpixelConv", "Upsample"), ((3, 3), 2)),
    "LargeContextConvTranspose": ((5, 5), 2),
    **dict.fromkeys((*FIXED, *OTHERS, "Carafe", "DySample"), ((2, 2),)),
}


@each("name", [n for n, layer in vars(linen).items() if isinstance(layer, type)])
def test_both_flaxes_draw_up_a_table_of_every_layer(name):
    args, x = ARGUMENTS[name], jnp.zeros((1, 4, 6, 8))
    inputs = (x, x.astype(int)) if name == "MaxUnpool" else (x,)
    channels = (
        () if name in {*FIXED, *OTHERS} else (8,) if name in {"Carafe", "DySample"} else (8, 3)
    )
    rngs = {"rngs": nnx.Rngs(0), "kernel_init": jax.nn.initializers.zeros} if channels else {}
    options = OTHERS.get(name, {})
    one = getattr(tnn, name)(*channels, *args, **options, **rngs)
    assert name in nnx.tabulate(one, *inputs)
    two = getattr(linen, name)(*channels[1:], *args, **options)
    assert name in two.tabulate(jax.random.key(0), *inputs)
    inside = flax.linen.Sequential([two]).tabulate(jax.random.key(0), *inputs)
    assert "layers_0" in inside


def test_upsample_hands_on_order_and_other_options():
    x = draw(3, 4, 2)
    one = tnn.Upsample(2, 4, (1, 1), 2, method="subpixel_conv", order="DCR", use_bias=False,
                       rngs=nnx.Rngs(0))  # fmt: skip
    want = subpixel_conv(x, one.layer.kernel[...], scale=2, order="DCR")
    np.testing.assert_array_equal(one(x), want)
    assert one.layer.bias is None


@pytest.mark.slow
@each("graph", (True, False))
def test_trains_in_graph_mode_and_in_tree_mode(graph):
    """The same losses; a warning of either mode would be an error here."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List(
                [
                    tnn.Conv(2, 3, (3,), 2, padding="REFLECT", rngs=rngs),
                    tnn.Upsample(3, 4, (3,), 2, method="subpixel_conv", rngs=rngs),
                    tnn.ConvTranspose(4, 4, (4,), 2, mask=jnp.ones((4, 4, 4)), rngs=rngs),
                    tnn.BlurPool((2,)),
                    tnn.ResizeConv(4, 1, (3,), 2, use_bias=False, rngs=rngs),
                ]
            )

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    x = draw(2, 8, 2)
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
        model = Model(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            return jnp.mean((nnx.merge(graphdef, params, rest)(x) - 1.0) ** 2)

        step = jax.jit(jax.value_and_grad(loss))
        losses = []
        for _ in range(3):
            value, grads = step(params)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
            losses.append(float(value))
        again, grads = nnx.jit(nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1.0) ** 2)))(model)
        optimizer.update(model, grads)
        after = jnp.mean((model(x) - 1.0) ** 2)
    assert losses[2] < losses[1] < losses[0]
    np.testing.assert_allclose([again, after], losses[:2], rtol=1e-5)


def test_default_initializer_keeps_the_variance_and_flax_loses_it(key):
    x = jax.random.normal(key, (4, 16, 16, 64))
    ours = tnn.ConvTranspose(64, 64, (4, 4), 2, rngs=nnx.Rngs(0))
    theirs = nnx.ConvTranspose(64, 64, (4, 4), 2, rngs=nnx.Rngs(0))
    inner = (slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(ours(x)[inner].var(), 1, rtol=0.1)
    np.testing.assert_allclose(theirs(x)[inner].var(), 1 / 4, rtol=0.1)
    lecun = jax.nn.initializers.lecun_normal()
    same = tnn.ConvTranspose(64, 64, (4, 4), 2, kernel_init=lecun, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(same.kernel[...], theirs.kernel[...])


@each("name", NAMES)
def test_dtype_mask_and_gradients(name):
    size = 6 if name == "SubpixelConv" else 3
    options = {"dtype": jnp.bfloat16, "mask": jnp.zeros((3, 2, size))}
    one, two = twins(name, 2, 3, (3,), 2, **options)
    x = draw(7, 2)
    assert one(x).dtype == jnp.bfloat16
    assert one.kernel[...].dtype == jnp.float32
    np.testing.assert_array_equal(one(x), two(x))
    want = one.bias[...].astype(jnp.bfloat16)  # all taps masked: the bias is left
    np.testing.assert_array_equal(one(x)[0], want[::2] if name == "SubpixelConv" else want)
    fresh = getattr(tnn, name)(2, 3, (3,), 2, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(fresh, nnx.Param, ...)
    grads = jax.jit(jax.grad(lambda p: nnx.merge(graph, p, rest)(x).sum()))(params)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_linen_layers_are_hashable_and_serve_as_static_arguments():
    layer = linen.Upsample(3, (3,), 2, method="nearest", options={"use_bias": False})
    assert hash(layer) == hash(layer.copy())
    init = jax.jit(lambda layer, x: layer.init(jax.random.key(0), x), static_argnums=0)
    assert list(init(layer, draw(5, 2))["params"]["layer"]) == ["kernel"]


def test_a_list_of_numbers_is_an_image():
    one, two = twins("Conv", 2, 3, (1,))
    np.testing.assert_array_equal(one([[1.0, 2.0]]), two([[1.0, 2.0]]))


def test_an_attribute_that_is_changed_later_counts():
    layer = tnn.ConvTranspose(2, 3, (3,), 2, rngs=nnx.Rngs(0))
    layer.implementation = "dilated"
    assert "tconv_" not in str(jax.make_jaxpr(lambda x: layer(x))(draw(7, 2)))


@each("name", NAMES)
def test_graph_definitions_are_hashable_and_equal(name):
    make = lambda i: getattr(tnn, name)(2, 3, [3], 2, padding=[[1, 1]], rngs=nnx.Rngs(i))
    one, two = (nnx.graphdef(make(i)) for i in (0, 1))
    assert hash(one) == hash(two)
    assert one == two


def test_metadata_reaches_the_parameters():
    layer = tnn.SubpixelConv(2, 3, (3,), 2, rngs=nnx.Rngs(0), kernel_metadata={"tag": "frozen"},
                             bias_metadata={"tag": "free"})  # fmt: skip
    assert (layer.kernel.tag, layer.bias.tag) == ("frozen", "free")


WRONG = [
    ("ConvTranspose", (4, 6, (3, 3), 2), {"feature_group_count": 4}, "features=6"),
    ("ConvTranspose", (4, 6, (3, 3), 0), {}, "ConvTranspose: strides must be at least 1"),
    ("ConvTranspose", (4, 6, (3, 3), 2), {"output_padding": 1}, "goes with integer padding"),
    (
        "ConvTranspose",
        (4, 6, (3, 3), 2),
        {"padding_convention": "forwards"},
        "Did you mean 'forward'?",
    ),
    (
        "ConvTranspose",
        (4, 6, (3, 3)),
        {"padding": "CAUSAL"},
        "for one spatial axis; got kernel_size=(3, 3)",
    ),
    ("ConvTranspose", (4, 6, (3, 3)), {"implementation": "foo"}, "implementation must be one of"),
    ("Conv", (4, 6, (3, 3), 2), {"precision": "hihg"}, "precision must be None"),
    ("Conv", (4, 6, (3, 3)), {"padding": "CIRCULR"}, "Did you mean 'CIRCULAR'?"),
    ("Conv", (4, 6, (3, 3)), {"padding": "CAUSAL"}, "for one spatial axis; got kernel_size=(3, 3)"),
    (
        "Conv",
        (4, 6, (3, 3)),
        {"padding": "CIRCULAR", "padding_mode": "reflect"},
        "got padding_mode='reflect'",
    ),
    ("Conv", (4, 6, (3, 3)), {"padding_mode": "wrap"}, "padding_mode must be one of"),
    ("Conv", (4, 0, (3, 3)), {}, "features must be at least 1; got "),
    ("Conv", (4, 6, ()), {}, "kernel_size must have at least one spatial axis"),
    ("ResizeConv", (4, 6, (3, 3), 2), {"method": "neares"}, "Did you mean 'nearest'?"),
    ("ResizeConv", (4, 6, (3, 3), (2, 2, 2)), {}, "scale must be an int or one int per"),
    ("SubpixelConv", (4, 6, (3, 3), 2), {"order": "CRDD"}, "Did you mean 'CRD'?"),
    ("ConvTranspose", (4, 6, (3, 1), 2), {"balanced": True}, "balanced=True needs an undilated"),
    ("PixelConvTranspose", (4, 6, (3, 3, 3)), {}, "kernel_size must be an int or one int per"),
    ("LargeContextConvTranspose", (4, 6, (7, 7), 2), {"small_kernel_size": 2}, "differ by half a"),
    ("Carafe", (4, (2, 2)), {"window": 4}, "Carafe: window must be odd"),
    ("DySample", (4, (2, 2)), {"groups": 0}, "DySample: groups must be at least 1"),
    ("Upsample", (4, 6, (3, 3), 2), {"method": "bilinear"}, "method must be one of"),
    ("Upsample", (4, 6, (3, 3), 0), {}, "Upsample: scale must be at least 1; got scale=(0, 0)"),
    ("Upsample", (4, 6, (3, 3), 2), {"method": "subpixel_conv", "order": ""}, "order must be one"),
    ("Upsample", (4, 6, (3, 3), 2), {"order": "CRD"}, "order belongs to method='subpixel_conv'"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("name", "args", "options", "message"), WRONG)
def test_both_sets_refuse_at_construction(name, args, options, message):
    messages = []
    for make in (
        lambda: getattr(tnn, name)(*args, rngs=nnx.Rngs(0), **options),
        lambda: getattr(linen, name)(*args[1:], **options),
    ):
        with pytest.raises(ValueError, match=r"^[A-Z]\w+: ") as caught:
            make()
        messages.append(str(caught.value))
    assert all(message in m for m in messages), messages
    assert messages[0] == messages[1] or "features" in messages[0]


@pytest.mark.refuses
def test_refuses_a_mask_of_another_shape_and_odd_pools():
    with pytest.raises(ValueError, match=r"mask must have the shape of the kernel; got \(3, 3\)"):
        tnn.Conv(4, 6, (3, 3), mask=jnp.ones((3, 3)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"mask must have the shape of the kernel; got \(3, 3\)"):
        linen.Conv(6, (3, 3), mask=jnp.ones((3, 3))).init(jax.random.key(0), draw(5, 5, 4))
    for name, options, message in (
        ("Upsample", {"scale": None}, "Upsample: scale must be an integer; got None"),
        ("ResizeConv", {"scale": None}, "ResizeConv: scale must be an integer; got None"),
        (
            "Conv",
            {"dtype": "foo"},
            "Conv: dtype must be a floating or complex dtype; got dtype='foo'",
        ),
        ("Conv", {"param_dtype": jnp.int32}, "Conv: param_dtype must be a floating or complex"),
        (
            "Conv",
            {"preferred_element_type": "i4"},
            "Conv: preferred_element_type must be a floating",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            getattr(tnn, name)(4, 6, kernel_size=(3, 3), rngs=nnx.Rngs(0), **options)
        with pytest.raises(TypeError, match=message):
            getattr(linen, name)(6, kernel_size=(3, 3), **options)
    with pytest.raises(
        TypeError, match="Upsample: options are keywords of the layer inside, except"
    ):
        tnn.Upsample(4, 6, (3, 3), 2, strides=2, rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match="Upsample: options are keywords of the layer inside, except"
    ):
        linen.Upsample(6, (3, 3), 2, options=None)
    for x, error in ((None, TypeError), ("text", TypeError), (jnp.ones(()), ValueError)):
        with pytest.raises(error, match="Conv: "):
            tnn.Conv(4, 6, (3,), rngs=nnx.Rngs(0))(x)
        with pytest.raises(error, match="Conv: "):
            linen.Conv(6, (3,)).init(jax.random.key(0), x)
    for module in (tnn, linen):
        with pytest.raises(TypeError, match="BlurPool: strides must be a sequence"):
            module.BlurPool(2)
        with pytest.raises(ValueError, match="BlurPool: filter_size must be at least 1"):
            module.BlurPool((2,), filter_size=0)
        with pytest.raises(ValueError, match="Hold: order must be at least 0"):
            module.Hold((2,), order=-1)
    moved = r"LargeContextConvTranspose: padding, output_padding and kernel_dilation are not among"
    with pytest.raises(TypeError, match=moved):
        tnn.LargeContextConvTranspose(4, 6, (7,), 2, padding=1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=moved):
        linen.LargeContextConvTranspose(6, (7,), 2, options={"kernel_dilation": 2})


def test_layers_that_resize_meet_the_size_of_a_skip_connection():
    x = np.random.default_rng(0).standard_normal((1, 5, 4, 2)).astype("f")
    for name, options in (
        ("ResizeConv", {"method": "linear"}),
        ("Upsample", {"method": "nearest"}),
    ):
        theirs = getattr(tnn, name)(2, 3, (3, 3), 2, rngs=nnx.Rngs(0), **options)
        kernel = getattr(theirs, "layer", theirs).kernel[...]
        want = tconvjax.resize_conv(x, kernel, 2, output_shape=(11, 7), **options)
        np.testing.assert_allclose(theirs(x, output_shape=(11, 7)), want, atol=1e-6)
        ours = getattr(linen, name)(3, (3, 3), 2, **options)
        parameters = {"kernel": kernel, "bias": np.zeros(3, "f")}
        inside = {"layer": parameters} if name == "Upsample" else parameters
        got = ours.apply({"params": inside}, x, output_shape=(11, 7))
        np.testing.assert_allclose(got, want, atol=1e-6)
