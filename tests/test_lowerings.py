"""How faces are lowered: phases, strips, the cost model, and what the programs hold."""

import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import CASES, each, together
from jax import lax

from tconvjax import _faces as faces
from tconvjax import _geometry as geo
from tconvjax import _lowerings as lowerings
from tconvjax import conv, conv_transpose, resize_conv
from tconvjax._arguments import IMPLEMENTATIONS, PLAIN, Call
from tconvjax._geometry import Geometry, conv_geometry, parts
from tconvjax._lowerings import cost, native, patches
from tconvjax._lowerings.strips import in_columns


def test_phases_meet_what_the_definition_meets():
    """Each pixel q + p = s·m + g·r is met by exactly the taps with s | q + p − d·a, at the pixels that are named."""
    for k, s, d in itertools.product(range(1, 8), range(1, 7), range(1, 7)):
        for separate in (False, True):
            g = np.gcd(s, d)
            met = {}
            for c in geo.phase_ranges(k, s, d, separate=separate):
                for r, j in itertools.product(range(c.size), range(c.taps)):
                    tap = c.tap + r + s // g * j
                    met[s * 10 + g * (c.first + r), tap] = 10 - c.shift - d // g * j
            pixels = range(s * 10, s * 11)
            want = {
                (q, a): (q - d * a) // s
                for q, a in itertools.product(pixels, range(k))
                if (q - d * a) % s == 0
            }
            assert met == want, (k, s, d)


@pytest.mark.parametrize(
    ("k", "s", "parts"), [(4, 2, 1), (3, 2, 2), (16, 8, 1), (7, 3, 2), (9, 9, 1)]
)
def test_phases_share_parts(k, s, parts):
    found = geo.phase_ranges(k, s, 1)
    assert len(found) == parts
    assert sum(c.size * c.taps for c in found) == k  # no tap twice, none that is not there
    assert len(geo.phase_ranges(k, s, 1, separate=True)) == s


def convolutions(f, *arrays):
    """Every convolution in the program, in Python's terms."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                found.append(eqn)
            for sub in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "jaxpr")):
                if hasattr(sub, "jaxpr"):
                    walk(sub.jaxpr)

    walk(jax.make_jaxpr(f)(*arrays).jaxpr)
    return found


def lowered(face, geometry, *arrays, name="auto", platform="cpu"):
    """One face on one problem, in plain JAX."""
    call = Call(geometry, arrays[0].dtype, implementation=name, platform=platform)
    return faces.compute(face, *(a[None] for a in arrays), call)[0]


@each("face", ("gather", "paint", "correlate"))
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_phase_multiplies_every_tap_once_and_no_zeros(face, k):
    geometry = conv_geometry("test", (8, 10), (k, k), strides=2, padding=1)
    x, y = jnp.ones((2, 8, 10, 3)), jnp.ones((2, *geometry.small, 5))
    w = jnp.ones((k, k, 3, 5))
    operands = {"gather": (x, w), "paint": (y, w), "correlate": (x, y)}[face]
    made = convolutions(
        lambda *a: lowered(face, geometry, *a, name="phase", platform=None), *operands
    )
    assert all(e.params["lhs_dilation"] == (1, 1) for e in made)
    kernels = (e.outvars[0] if face == "correlate" else e.invars[1] for e in made)
    assert sum(np.prod(v.aval.shape) for v in kernels) == w.size
    assert len(made) == (1 if k % 2 == 0 else 4)


def test_programs_grow_with_phases_and_not_with_taps():
    """The operations of forward and gradients: the same for 4 taps of stride 2 and 16 of stride 8."""

    def operations(k, s):
        f = lambda x, w: jnp.sum(conv_transpose(x, w, strides=s, padding=(k - s) // 2) ** 2)
        x, w = jnp.ones((1, 6, 6, 8)), jnp.ones((k, k, 8, 8))
        return jax.jit(jax.grad(f, (0, 1))).lower(x, w).as_text().count("stablehlo.")

    assert operations(16, 8) <= operations(4, 2) + 40


def test_no_zeros_are_made_for_a_tpu():
    """The small image is dilated by the convolution itself or, in groups, not at all; see `cost`."""
    for groups in (1, 2):
        f = lambda x, w, g=groups: conv_transpose(x, w, strides=2, feature_group_count=g)
        both = jax.jit(lambda x, w, f=f: (f(x, w), jax.grad(lambda *a: f(*a).sum(), (0, 1))(x, w)))
        shapes = (2, 8, 8, 4), (4, 4, 4 // groups, 4)
        x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
        text = jax.export.export(both, platforms=["tpu"])(x, w).mlir_module()
        interiors = re.findall(r"interior = array<i64: ([-\d, ]+)>", text)
        assert all(set(i.split(", ")) == {"0"} for i in interiors)
        assert ("lhs_dilate = [2, 2]" in text) == (groups == 1)


@pytest.fixture
def short_strips(monkeypatch):
    for name in ("STRIPS", "STRIPS_OF_GROUPS", "UNLIMITED"):
        monkeypatch.setattr(native, name, getattr(native, name)._replace(whole=7, strip=7))
    monkeypatch.setattr(patches, "WHOLE", 999)
    monkeypatch.setattr(patches, "STRIP", 999)


@pytest.mark.usefixtures("short_strips", "x64")
@each("case", [c for c in CASES if c.padding_mode == "zeros"])
def test_kernel_gradients_in_strips_equal_the_whole(case):
    """Whatever axis, stride, dilation and crop; some sizes need zeros to fill the last strip."""
    batch = 5 if CASES.index(case) % 2 else 2
    draw = np.random.default_rng(20161017).normal
    x = jnp.asarray(draw(size=(batch, *case.image_shape[1:])))
    options = {n: getattr(case, n) for n in ("strides", "padding", "kernel_dilation")}
    geometry = conv_geometry(
        "test", case.big, case.kernel_size, **options,
        feature_group_count=case.feature_group_count,
    )  # fmt: skip
    y = jnp.asarray(draw(size=(batch, *geometry.small, case.out_features)))
    settled = Call(geometry, jnp.dtype(jnp.float64), platform="cpu")
    whole = replace(settled, spread=True)
    in_pairs = in_columns(lowerings.LOWERINGS["elementwise"].correlate, 2)
    in_strips = (native.DILATED.correlate, lowerings.MATMUL.correlate, in_pairs)
    want, *found = together(
        lambda x, y: lowerings.MATMUL.correlate(x, y, whole),
        *(lambda x, y, f=f: f(x, y, settled) for f in in_strips),
    )(x, y)
    for got in found:
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("short_strips")
def test_strips_are_taken():
    geometry = conv_geometry("test", (8, 8), (3, 3), strides=2)
    x, y = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4, 4, 5))
    run = lambda call: str(jax.make_jaxpr(lambda x, y: native.correlate(x, y, call))(x, y))
    call = Call(geometry, jnp.dtype(jnp.float32), platform="cpu")
    assert "scan" in run(call)
    assert "f32[3,3,3,5]" in run(call)
    assert not re.search(r"f32\[\d+,3,3,3,5\]", run(call))  # one sum, not a kernel per strip
    assert "scan" not in run(replace(call, spread=True))
    assert "scan" not in run(replace(call, platform=None))


def test_depthwise_taps_are_loops_that_a_cpu_runs_fast():
    """Seven times faster where no tap asks whether it is inside, ten times where a sum over columns is short."""
    geometry = conv_geometry("test", (6, 70), (3, 3), feature_group_count=4)
    x, w, y = jnp.ones((2, 6, 70, 4)), jnp.ones((3, 3, 1, 4)), jnp.ones((2, 6, 70, 4))
    elementwise = lowerings.LOWERINGS["elementwise"]
    call = Call(geometry, jnp.dtype(jnp.float32), platform="cpu")
    text = str(jax.make_jaxpr(lambda x, w: elementwise.gather(x, w, call))(x, w))
    assert text.index("pad[") < text.index("optimization_barrier") < text.index("slice[")
    run = lambda call: str(jax.make_jaxpr(lambda x, y: elementwise.correlate(x, y, call))(x, y))
    assert "length=5" in run(call)  # 14 columns each
    assert "scan" not in run(replace(call, spread=True))


@each("name", [n for n in IMPLEMENTATIONS if n not in PLAIN])
def test_convolutions_in_loops_have_the_layout_that_is_fast_on_a_cpu(name):
    """XLA brings others into this form outside of loops alone, and runs them up to 300 times slower inside."""
    f = lambda x, w: jnp.sum(conv_transpose(x, w, strides=2, implementation=name) ** 2)
    x, w = jnp.ones((3, 2, 6, 6, 4)), jnp.ones((3, 3, 4, 5))
    step = lambda w, x: (w - jax.grad(f, 1)(x, w) - jax.grad(f)(x, w).sum(), None)
    text = jax.jit(lambda w, x: lax.scan(step, w, x)[0]).lower(w, x).as_text()
    layouts = re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
    assert set(layouts) <= {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


@each("function", (conv, conv_transpose, resize_conv))
@each("implementation", ("dilated", "linear_transpose"))
def test_no_convolution_of_xla_is_asked_to_crop(implementation, function):
    """XLA on a CPU may end the process there: openxla/xla#48713."""
    options = {"padding": ((1, -1), (-2, 1)), "implementation": implementation}
    if function is resize_conv:
        options |= {"scale": 1, "implementation": "plain"}
    x, w = jnp.arange(60.0).reshape(1, 2, 6, 5), jnp.arange(75.0).reshape(1, 3, 5, 5)
    found = convolutions(lambda *a: function(*a, **options), x, w)
    assert found
    assert all(p >= 0 for eqn in found for pair in eqn.params["padding"] for p in pair)
    want = function(x, w, **options | {"implementation": "auto"})
    np.testing.assert_allclose(function(x, w, **options), want, rtol=1e-5)


def test_the_choice_takes_no_time_over_phases_without_taps():
    """Nine million phases, of which three by three have taps."""
    geometry = conv_geometry("test", (8, 8), (3, 3), strides=3001, kernel_dilation=2)
    assert len([*parts(geometry)]) <= 9


FACES = ("gather", "paint", "correlate")


def chosen(face, big, k, s, i, o, *, batch=8, groups=1, platform="cpu", **options):
    geometry = conv_geometry("test", big, k, strides=s, feature_group_count=groups)
    x, y = (batch, *big, i), (batch, *geometry.small, o)
    w = (*geometry.kernel_size, i // groups, o)
    operands = {"gather": (x, w), "paint": (y, w), "correlate": (x, y)}[face]
    return cost.choose(face, geometry, *operands, platform, **options)


@pytest.mark.parametrize("face", ["gather", "correlate"])
def test_no_window_is_larger_than_its_image(face):
    """XLA's convolutions on a CPU are up to 100 times slower with such windows; padding is then written out."""
    g = conv_geometry("conv", (4, 9), (6, 3), padding=3 if face == "gather" else 5)
    x, w, y = jnp.ones((2, *g.big, 3)), jnp.ones((6, 3, 3, 5)), jnp.ones((2, *g.small, 5))
    lhs, rhs = (x, w) if face == "gather" else (x, y)
    call = Call(g, x.dtype, implementation="dilated", platform="cpu")
    compute = jax.jit(lambda *a: faces.compute(face, *(v[None] for v in a), call))
    # As compiled: XLA would take a padding back into the convolution.
    windows = re.findall(
        r"convolution\(.*window=\{([^}]*)\}", compute.lower(lhs, rhs).compile().as_text()
    )
    assert windows
    assert not any("pad" in window for window in windows)


@pytest.mark.parametrize("implementation", ["auto", "matmul", "phase", "planes"])
@pytest.mark.parametrize(("k", "s", "i", "o"), [(4, 4, 3, 96), (4, 2, 32, 3), (3, 1, 8, 64)])
def test_half_precision_gradients_are_those_of_single(implementation, k, s, i, o):
    """XLA on CPU has no program for some products of half precision that sum in single, such as a turned one."""
    x, w = jnp.ones((2, 16, 16, i)), jnp.ones((k, k, i, o)) / (i * k * k)
    loss = lambda x, w: (
        conv(x, w, strides=s, implementation=implementation).astype(jnp.float32).sum()
    )
    single = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    half = jax.jit(jax.grad(loss, (0, 1)))(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    for a, b in zip(half, single, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a, b, rtol=2e-2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("k", "d", "groups", "padding"),
    [(3, 1, 1, 1), (3, 2, 1, 2), (3, 1, 2, 1), (2, 1, 1, ((0, 1), (1, -1))), (1, 1, 2, 0)],
)
def test_images_that_change_places_give_the_same_kernel_gradient(k, d, groups, padding):
    options = {"kernel_dilation": d, "feature_group_count": groups, "padding": padding}
    geometry = conv_geometry("test", (6, 7), (k, k), **options)
    draw = np.random.default_rng(20161017).normal
    x = jnp.asarray(draw(size=(3, 6, 7, 8)))
    y = jnp.asarray(draw(size=(3, *geometry.small, 4)))
    assert native._exchanges(x, y, geometry)
    np.testing.assert_allclose(
        lowered("correlate", geometry, x, y, name="dilated"),
        lowered("correlate", geometry, x, y, name="linear_transpose"),
        rtol=0,
        atol=1e-12,
    )


def test_images_keep_their_places_where_the_sum_would_be_longer():
    geometry = conv_geometry("test", (7, 7), (7, 7), padding=0)
    assert not native._exchanges(jnp.ones((2, 7, 7, 8)), jnp.ones((2, 1, 1, 4)), geometry)


@pytest.mark.parametrize("face", ["gather", "paint", "correlate"])
def test_products_of_one_group_have_no_batch(face):
    """A batch axis of size one makes XLA's product on a CPU up to nine times slower."""
    g = conv_geometry("conv", (8, 8), (4, 4), strides=2)
    x, w, y = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5)), jnp.ones((2, *g.small, 5))
    lhs, rhs = {"gather": (x, w), "paint": (y, w), "correlate": (x, y)}[face]
    one = getattr(lowerings.LOWERINGS["matmul"], face)
    call = Call(g, jnp.dtype("float32"), platform="cpu")
    text = jax.jit(lambda *a: one(*a, call)).lower(lhs, rhs).as_text()
    assert "dot_general" in text
    assert "batching_dims" not in text


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("i", "o"), [(0, 2), (2, 0)])
def test_no_channels_make_empty_images_or_zeros(implementation, i, o):
    x, w = np.ones((2, 6, 6, i), "f"), np.ones((3, 3, i, o), "f")
    f = lambda x, w: conv(x, w, strides=2, padding=1, implementation=implementation)
    y, gradients = jax.jit(lambda *a: (f(*a), jax.grad(lambda *a: f(*a).sum(), (0, 1))(*a)))(x, w)
    assert y.shape == (2, 3, 3, o)
    assert not np.asarray(y).any()
    assert [a.shape for a in gradients] == [x.shape, w.shape]
    geometry = conv_geometry("test", (6, 6), (3, 3), strides=2, padding=1)
    one_device = Call(geometry, jnp.dtype(jnp.float32), platform="cpu")  # the tests have eight
    lowering = lowerings.LOWERINGS.get(implementation, lowerings.MATMUL)
    assert jax.jit(lambda x, y: lowering.correlate(x, y, one_device))(x, y).shape == w.shape


def test_the_choice_on_a_cpu():
    big = (64, 64)
    assert chosen("paint", big, (4, 4), 2, 64, 128) == "phase"
    assert chosen("paint", (8, 8), (4, 4), 2, 256, 512) == "matmul"  # borders would be a third
    assert chosen("gather", big, (4, 4), 2, 64, 128) == "dilated"
    assert chosen("correlate", big, (3, 3), 1, 64, 64) == "dilated"
    assert chosen("correlate", big, (1, 1), 1, 64, 64) == "matmul"
    for face in FACES:  # no naive loops
        assert chosen(face, (16, 16, 16), (4, 4, 4), 2, 32, 32, batch=2) != "dilated"
        assert chosen(face, big, (3, 3), 1, 64, 64, groups=64) == "elementwise"
        assert chosen(face, (4, 4, 4), (3, 3, 3), 1, 8, 8, groups=8) != "dilated"


def test_the_choice_elsewhere_is_what_is_native():
    for face, groups, s in itertools.product(FACES, (1, 4), (1, 2)):
        name = chosen(face, (16, 16), (4, 4), s, 8, 8, groups=groups, platform=None)
        assert name == ("phase" if (face, groups, s) == ("paint", 4, 2) else "dilated")


@each("case", CASES)
@each("face", FACES)
def test_every_estimate_is_a_positive_time(case, face):
    geometry = conv_geometry(
        "test", case.big, case.kernel_size, strides=case.strides,
        padding=case.padding, kernel_dilation=case.kernel_dilation,
        feature_group_count=case.feature_group_count,
    )  # fmt: skip
    sizes = cost.Sizes(
        2, *(c // case.feature_group_count for c in (case.in_features, case.out_features))
    )
    for name in cost.CANDIDATES:
        assert 0 < cost.seconds(name, face, geometry, sizes) < 10
        many, few = (
            cost.seconds(name, face, geometry, sizes._replace(batch=n)) for n in (200_000, 2000)
        )
        assert many > 10 * few


def test_symbolic_sizes_are_estimated():
    b, h = jax.export.symbolic_shape("b, h")
    geometry = Geometry((2 * h, 2 * h), (h, h), (4, 4), (2, 2), (1, 1), (1, 1))
    for face in FACES:
        assert cost.choose(face, geometry, (b, h, h, 8), (4, 4, 8, 8), "cpu") in cost.CANDIDATES


FUSED = [
    (method, mode)
    for method, modes in (
        ("nearest", ("zeros", "circular", "replicate")),
        ("linear", ("zeros", "replicate")),
    )
    for mode in modes
]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("method", "mode"), FUSED)
@pytest.mark.parametrize(
    ("r", "k", "d", "padding"),
    [
        (2, 3, 1, "SAME"),
        (3, 2, 1, "VALID"),
        (2, 5, 2, 3),
        (1, 3, 1, 1),
        (3, 3, 1, ((0, 3), (-1, 2))),
        (2, 3, 1, ((9, 1), (0, 20))),
    ],
)
def test_a_fused_resize_convolution_is_the_plain_one(method, mode, r, k, d, padding):
    draw = np.random.default_rng(20161017).normal
    x, kernel = jnp.asarray(draw(size=(2, 5, 4, 4))), jnp.asarray(draw(size=(k, k, 2, 6)))
    options = {
        "scale": r, "method": method, "padding": padding, "padding_mode": mode,
        "kernel_dilation": d, "feature_group_count": 2,
    }  # fmt: skip

    def both(implementation):
        f = lambda x, w: resize_conv(x, w, implementation=implementation, **options)
        y, back = jax.vjp(f, x, kernel)
        return y, *back(jnp.sin(y))

    for a, b in zip(both("fused"), both("plain"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_auto_never_enlarges_the_image(method):
    """Neither forward nor backward is anything as large as the enlarged image with the channels of the input."""

    def largest(implementation):
        f = lambda x, w: resize_conv(x, w, scale=4, method=method, implementation=implementation)
        step = lambda x, w: jax.grad(lambda *a: jnp.sum(f(*a)), (0, 1))(x, w)
        x, w = jnp.ones((1, 8, 8, 32)), jnp.ones((3, 3, 32, 2))
        text = jax.jit(step).lower(x, w).as_text()
        shapes = re.findall(r"tensor<([\dx]+)xf32>", text)
        return max(np.prod([int(n) for n in shape.split("x")]) for shape in shapes)

    assert largest("plain") >= 32 * 32 * 32
    assert largest("auto") < 32 * 32 * 32 / 2


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("method", "mode"), [("linear", "circular"), ("nearest", "reflect"), ("cubic", "replicate")]
)
def test_fused_refuses_borders_that_need_the_enlarged_image(method, mode):
    with pytest.raises(
        ValueError, match=r"^resize_conv: implementation='fused' needs .* Use 'auto'\."
    ):
        resize_conv(
            jnp.ones((4, 1)), jnp.ones((3, 1, 1)), scale=2, method=method, padding_mode=mode,
            implementation="fused",
        )  # fmt: skip


def test_stacked_kernels_are_no_grouped_convolution_on_a_cpu():
    """Many seeds at once run one after another, as fast as a loop."""
    f = jax.vmap(lambda x, w: conv(x, w))
    x, w = jnp.ones((3, 2, 8, 8, 4)), jnp.ones((3, 3, 3, 4, 4))
    text = jax.jit(f).lower(x, w).as_text()
    assert "while" in text
    assert set(re.findall(r"feature_group_count = (\d+)", text)) == {"1"}
    want = oracles.conv(
        *(np.float64(a[1]) for a in (x, w)), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros"
    )
    np.testing.assert_allclose(jax.jit(f)(x, w)[1], want, rtol=1e-5)


def test_parts_of_a_geometry_keep_its_groups():
    geometry = replace(conv_geometry("test", (8,), (3,), strides=2), feature_group_count=2)
    x, w = jnp.arange(32.0).reshape(1, 8, 4), jnp.arange(36.0).reshape(3, 2, 6)
    got = lowered("gather", geometry, x, w, name="phase")
    np.testing.assert_allclose(got, conv(x, w, strides=2, feature_group_count=2), rtol=1e-6)
