"""`measure`: grids in pictures, what is none, and what cannot be told."""

import io
import json
from math import inf

import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from PIL import Image
from scipy import ndimage, stats

import tconvjax
from tconvjax import measure
from tconvjax._measure import fields, lines, sheets
from tconvjax._measure.pictures import pictures_of

N = 128
ROWS, COLUMNS = np.indices((N, N))
SQUARE = lambda index, period: np.where(index % period < period // 2, 1.0, -1.0)
GRIDS = {  # root mean square 1; with the period and the orientation
    "board": (SQUARE(ROWS + COLUMNS, 2), 2, "board"),
    "columns": (SQUARE(COLUMNS, 2), 2, "columns"),
    "rows": (SQUARE(ROWS, 2), 2, "rows"),
    "both axes": ((SQUARE(COLUMNS, 2) + SQUARE(ROWS, 2)) / 2**0.5, 2, "both axes"),
    "columns of 3": ((3 * (COLUMNS % 3 == 0) - 1) / 2**0.5, 3, "columns"),
    "columns of 4": (SQUARE(COLUMNS, 4), 4, "columns"),
    "rows of 6": ((6 * (ROWS % 6 == 0) - 1) / 5**0.5, 6, "rows"),
}


def scene(seed, n=N, colors=3):
    """Clouds, edges and grain, as in photographs, in grey levels."""
    random = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)
    spectrum = (
        np.fft.rfft2(random.normal(size=(colors, n, n))) / np.maximum(np.hypot(y, x), 1 / n) ** 1.2
    )
    clouds = np.fft.irfft2(spectrum, (n, n))
    clouds = 30 * clouds / clouds.std() + 128
    rows, columns = np.indices((n, n))
    for _ in range(4):
        a, b, r = random.integers(0, n, 3)
        clouds += random.normal(0, 30) * ((rows - a) ** 2 + (columns - b) ** 2 < (r / 3) ** 2)
    clouds[:, :, n // 3 :] -= 25
    grained = clouds + random.normal(0, 2, clouds.shape)
    return ndimage.gaussian_filter(grained, (0, 0.6, 0.6)).transpose(1, 2, 0)


def pixels(levels):
    """Whole grey levels; the fraction that rounding takes is drawn."""
    random = np.random.default_rng(0)
    return np.clip(np.floor(levels + random.random(levels.shape)), 0, 255).astype(np.uint8)


@each("name", GRIDS)
def test_a_grid_is_found_and_named(name):
    grid, period, orientation = GRIDS[name]
    for seed in range(3):
        found = measure(pixels(scene(seed) + 2 * grid[..., None]))
        assert (found.verdict, found.period, found.orientation) == ("pattern", period, orientation)
        assert found.amplitude == pytest.approx(2, rel=0.25)
        assert found.cause == "upsampling"
        assert found.contrast > 10
        assert found.p_value < 1e-4
        assert f"period {period} ({orientation})" in found.text


def test_clean_pictures_have_none():
    found = measure([pixels(scene(seed)) for seed in range(20)])
    assert found.verdict == "clean"
    assert [image.verdict for image in found.images] == ["clean"] * 20
    assert found.period is found.orientation is found.amplitude is found.contrast is None
    assert found.limit < 0.2 < np.median([image.limit for image in found.images]) < 1


def test_noise_is_called_a_pattern_as_often_as_is_said():
    random = np.random.default_rng(0)
    found = measure(random.normal(128, 5, (300, 32, 32, 1)).round() / 255)
    p = np.array([image.p_value for image in found.images])
    assert (p < 0.005).sum() <= 6  # 1.5 are expected
    assert found.verdict == "clean"


def test_what_one_picture_hides_a_set_shows():
    grid = GRIDS["board"][0][..., None]
    hidden = np.stack([scene(seed, colors=1) + 0.03 * grid for seed in range(40)])
    found = measure(np.clip(hidden, 0, 255))
    assert (found.verdict, found.period, found.orientation) == ("pattern", 2, "board")
    assert found.amplitude == pytest.approx(0.03, rel=0.3)
    assert sum(image.verdict == "pattern" for image in found.images) < 30
    assert len(found.images) == 40
    assert found.images[3].path == "images[3]"


def test_a_contrast_that_changes_with_the_phase_is_a_pattern_without_a_mean():
    random = np.random.default_rng(0)
    noise = random.normal(0, 10, (N, N, 1))
    uneven = 128 + noise * (1 + 0.5 * GRIDS["columns of 4"][0][..., None])
    found = measure(pixels(uneven))
    assert (found.verdict, found.amplitude) == ("pattern", None)
    assert found.period in {2, 4}
    assert "of the local contrast" in found.text


def test_a_strong_grid_in_a_part_of_a_picture_is_found():
    inside = (abs(ROWS - 50) < 20) & (abs(COLUMNS - 70) < 20)
    found = measure(pixels(scene(0) + np.where(inside, 40 * GRIDS["board"][0], 0)[..., None]))
    assert (found.verdict, found.period, found.orientation) == ("pattern", 2, "board")


@each("kind", ("nearest", "bilinear"))
def test_an_enlarged_file_is_named(kind):
    small = Image.fromarray(pixels(scene(0, 80)))
    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
    found = measure(np.asarray(small.resize((160, 160), filters[kind])))
    assert (found.verdict, found.period) == ("pattern", 2)
    assert found.cause == {"nearest": "nearest", "bilinear": "smooth"}[kind] + " enlargement"


def jpeg(values, quality):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(("quality", "levels"), [(75, 10), (90, 3)])
def test_blocks_of_jpeg_are_no_pattern_and_hide_none_that_is_left(quality, levels):
    found = measure(jpeg(pixels(scene(1, 160)), quality))
    assert (found.verdict, found.cause) == ("clean", "jpeg")
    grid = levels * SQUARE(np.indices((160, 160)).sum(0), 2)[..., None]
    found = measure(jpeg(pixels(scene(1, 160) + grid), quality))
    assert (found.verdict, found.period, found.orientation) == ("pattern", 2, "board")


@each("dtype", (np.uint8, np.float32))
def test_files_are_known_as_floats_too(dtype):
    """A JPEG as floats in [0, 1] has its blocks; a weak pattern of color that no file has made is one."""
    pixels_of_file = jpeg(pixels(scene(1, 160)), 75)
    given = pixels_of_file if dtype == np.uint8 else pixels_of_file.astype(dtype) / dtype(255)
    found = measure(given)
    assert (found.verdict, found.cause) == ("clean", "jpeg")
    if dtype == np.float32:
        green = 0.7 * GRIDS["columns"][0][..., None] * np.array([-0.5, 1, -0.5])
        assert measure(np.clip(scene(0) + green, 0, 255)).verdict == "pattern"


def test_a_pattern_of_the_reference_is_none():
    grid = GRIDS["columns"][0][..., None]
    real = [pixels(scene(seed) + grid) for seed in range(8)]
    assert measure(real[0]).verdict == "pattern"
    found = measure(real[0], reference=real[1:])
    assert found.verdict != "pattern"
    assert found.limit > measure(real[0]).limit  # beyond the reference
    assert "beyond the reference" in found.text or found.verdict == "undecided"
    assert found.reference.verdict == "pattern"
    assert len(found.reference.images) == 7
    board = 2 * GRIDS["board"][0][..., None]
    assert measure(pixels(scene(0) + grid + board), reference=real[1:]).orientation == "board"


def test_transparent_pixels_do_not_count():
    opaque = COLUMNS > N // 2
    grid = np.where(opaque, 0, 10 * GRIDS["board"][0])
    levels = scene(0) + grid[..., None]
    assert measure(pixels(levels)).verdict == "pattern"
    alpha = np.where(opaque, 255, 0)[..., None]
    found = measure(np.concatenate([pixels(levels), alpha.astype(np.uint8)], -1))
    assert found.verdict == "clean"
    assert found.limit < inf


def test_few_pixels_are_not_judged():
    found = measure(pixels(scene(0, 8)))
    assert found.verdict == "undecided"
    assert found.text.startswith("Undecided: the picture has too few or too busy pixels")
    assert (
        measure(pixels(scene(0, 8) + 20 * GRIDS["board"][0][:8, :8, None])).verdict == "undecided"
    )
    constant = measure(np.full((64, 64), 100, np.uint8))
    assert constant.verdict == "clean"
    assert constant.limit < 0.1


def test_a_tiny_picture_hides_no_pattern_of_the_others():
    boards = [pixels(scene(seed) + 2 * GRIDS["board"][0][..., None]) for seed in range(4)]
    tiny = pixels(scene(9, 4))
    found = measure([*boards, tiny, pixels(scene(8, colors=1))])
    assert (found.verdict, found.period, found.orientation) == ("pattern", 2, "board")
    assert measure(boards[0], reference=tiny).verdict == "pattern"


def test_transparent_pictures_are_undecided_and_change_nothing():
    random = np.random.default_rng(0)
    picture = np.concatenate([pixels(scene(0)), np.full((N, N, 1), 255, np.uint8)], -1)
    clear = picture.copy()
    clear[..., 3] = 0
    found = measure(clear)
    assert (found.verdict, found.limit) == ("undecided", inf)
    clear[random.integers(0, N), 5, 3] = 255
    assert measure(clear).verdict == "undecided"
    both = measure([picture, clear])
    assert (both.verdict, both.limit) == ("clean", measure(picture).limit)


def test_a_probability_is_that_of_the_pattern():
    found = measure(jpeg(pixels(scene(1, 160)), 75))
    assert found.cause == "jpeg"
    assert found.p_value > 0.005  # lines of blocks do not count


def test_overshoot_and_constants_have_the_range_of_the_others():
    x = scene(0) / 255
    x[3, 3] = 1.1
    assert measure(x).limit == pytest.approx(measure(np.minimum(x, 1)).limit, rel=0.1)
    constant = measure(np.full((64, 64), 300.0))
    assert (constant.verdict, constant.text) == ("clean", "No pattern: the picture has one color.")


def test_signals_and_volumes():
    random = np.random.default_rng(0)
    hum = np.cumsum(random.normal(size=4096)) + random.normal(size=4096)
    hum = 100 * hum / abs(hum).max()
    assert measure(hum + 128).verdict != "pattern"
    found = measure(hum + 128 + 2 * SQUARE(np.arange(4096), 8))
    assert (found.verdict, found.period, found.orientation) == ("pattern", 8, "samples")
    volume = random.normal(128, 5, (1, 24, 24, 24, 1))
    assert measure(volume).verdict != "pattern"
    board = 4 * SQUARE(np.indices((24, 24, 24)).sum(0), 2)[None, ..., None]
    found = measure(volume + board)
    assert (found.verdict, found.period, found.orientation) == ("pattern", 2, "board")


def test_ranges_of_floats_are_those_of_pixels():
    levels = scene(0) + 2 * GRIDS["board"][0][..., None]
    levels = np.clip(levels, 0, 255)
    found = [
        measure(x).amplitude
        for x in (
            levels,
            levels / 255,
            levels / 127.5 - 1,
            jnp.asarray(levels / 255),
            (257 * levels).astype(np.uint16),
        )
    ]
    np.testing.assert_allclose(found, found[0], rtol=0.02)
    signed = [levels / 127.5 - 1, np.abs(levels / 127.5 - 1)]  # one range for a set
    amplitudes = [image.amplitude for image in measure(signed).images]
    assert amplitudes[0] == pytest.approx(found[0], rel=0.02)


def test_chosen_periods_alone_are_sought():
    picture = pixels(scene(0) + 2 * GRIDS["rows of 6"][0][..., None])
    assert measure(picture, periods=[2, 3, 4, 5]).period in {2, 3}  # its overtones
    assert measure(picture, periods=[5]).verdict != "pattern"
    assert measure(picture, periods=[6]).period == 6


def sheet(count, gutter, color, grid=0.0):
    cells = [pixels(scene(seed, 64) + grid) for seed in range(count * count)]
    size = 64 + gutter
    page = np.full((count * size + gutter, count * size + gutter, 3), color, np.uint8)
    for i, cell in enumerate(cells):
        y, x = (gutter + size * j for j in divmod(i, count))
        page[y : y + 64, x : x + 64] = cell
    return page


@each("gutter", (0, 2))
def test_sheets_of_samples_are_cut(gutter):
    found = measure(sheet(4, gutter, 0))
    assert (found.tile, len(found.images)) == ((64, 64), 16)
    assert found.verdict == "clean"
    board = SQUARE(np.indices((64, 64)).sum(0), 2)[..., None]
    page = sheet(4, gutter, 255, board)
    found = measure(page)
    assert (found.verdict, found.period, found.orientation) == ("pattern", 2, "board")
    assert found.tile == (64, 64)
    again = measure(page, tile=64)
    assert (again.amplitude, len(again.images)) == (found.amplitude, 16)
    assert measure(page, tile=page.shape[:2]).tile == page.shape[:2]
    assert len(measure(page, tile=32).images) == (page.shape[0] // 32) ** 2  # not the cells found


def test_seams_between_cells_that_pass_into_each_other_are_found():
    """In each row of an interpolation neighbors are alike; some edges are stronger than its seams."""
    ends = [[scene(2 * i + j, 64) for j in (0, 1)] for i in range(4)]
    rows = [np.concatenate([a + (b - a) * j / 7 for j in range(8)], 1) for a, b in ends]
    page = np.concatenate(rows)
    page[40:42] += 100  # an edge
    (picture,) = pictures_of("measure", pixels(page))
    down, across = sheets.cells_of(picture)
    assert [a for a, _ in down] == [0, 64, 128, 192]
    assert [a for a, _ in across] == list(range(0, 512, 64))
    framed = np.pad(pixels(page), ((2, 2), (2, 2), (0, 0)))
    down, across = sheets.cells_of(pictures_of("measure", framed)[0])
    assert (down[0], across[1]) == ((2, 66), (66, 130))


@each("gutter", (0, 2))
def test_cells_on_one_background_are_cut(gutter):
    """Digits leave no seams, and gutters that are wider than those of the sheet."""
    random = np.random.default_rng(0)
    page = np.zeros((8 * (28 + gutter) + gutter,) * 2)
    for place in np.ndindex(8, 8):
        y, x = (gutter + (28 + gutter) * i for i in place)
        h, w = random.integers(8, 20, 2)
        page[y + 4 : y + 4 + h, x + 6 : x + 6 + w] = random.uniform(100, 250, (h, w))
    (picture,) = pictures_of("measure", pixels(page))
    pitch = 28 + gutter
    want = [(gutter + pitch * i, gutter + pitch * (i + 1)) for i in range(8)]
    assert sheets.cells_of(picture) == (want, want)


def test_two_or_three_repetitions_are_no_grid():
    """What all pictures of a set have at one place, as faces do, adds up; a few of its edges have a common distance."""
    random = np.random.default_rng(0)
    at = [14, 18, 19, 27, 28, 33, 45, 56, 70, 88, 91, 99]
    bars = np.where(np.isin(COLUMNS, at), 6.0, 3.0)
    faces = [pixels(128 + bars[..., None] * random.normal(size=(N, N, 1))) for _ in range(40)]
    found = measure(faces)
    assert found.verdict == "clean"
    assert not any(image.verdict == "pattern" for image in found.images)


def test_a_picture_is_no_sheet():
    for seed in range(10):
        (picture,) = pictures_of("measure", pixels(scene(seed)))
        assert sheets.cells_of(picture) is None
    framed = np.pad(pixels(scene(0)), ((20, 20), (0, 0), (0, 0)))  # as films are
    assert sheets.cells_of(pictures_of("measure", framed)[0]) is None


def test_large_pictures_are_measured_in_parts(monkeypatch):
    grid = GRIDS["columns of 4"][0][..., None]
    picture = pixels(scene(0) + 2 * grid)
    monkeypatch.setattr("tconvjax._measure.LARGEST", 64 * 64)
    monkeypatch.setattr("tconvjax._measure.PART", 64)
    found = measure(picture)
    assert (found.verdict, found.period, found.orientation) == ("pattern", 4, "columns")
    assert len(found.images) == 1


def test_the_answer_is_json_and_has_a_figure():
    found = measure([pixels(scene(0)), pixels(scene(1, 64)), pixels(scene(2, 8))])
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["images"][2]["verdict"] == "undecided"
    assert found.plot().axes[0].get_title().startswith("No pattern: ")
    board = measure(pixels(scene(0) + 2 * GRIDS["board"][0][..., None]))
    assert board.plot().axes[0].get_title().startswith("Pattern of period 2, board: ")
    assert "pictures" not in board.as_dict()
    with pytest.raises(ValueError, match=r"^Measurement.plot: there must be a picture"):
        measure(np.arange(100.0)).plot()


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images must hold at least one image"),
        ("a.png", {}, "Read files with"),
        (np.zeros((8, 8, 8)), {}, "write gray pictures as"),
        (np.zeros((2, 3, 8, 8)), {}, "Channels are last"),
        (iter([np.zeros((8, 8))]), {}, "Write list(...)"),
        ([np.zeros((8, 8)), np.zeros(8)], {}, "as many axes of space as the first; got 2 and 1"),
        (np.zeros((0, 8)), {}, "must hold pixels"),
        (np.full((8, 8), np.nan), {}, "must be finite"),
        (np.zeros((8, 8), complex), {}, "must hold real numbers"),
        (np.zeros((8, 8)), {"periods": [1]}, "from 2 to 64; got"),
        (np.zeros((8, 8)), {"periods": [65]}, "from 2 to 64; got"),
        (np.zeros((8, 8)), {"tile": 16}, "tile must be at most"),
        (np.zeros((8, 8)), {"tile": 1}, "tile must be at least 16"),
        (np.zeros((32, 32)), {"tile": 16}, "a cell, of more than one color"),
        (np.zeros((8, 8)), {"reference": []}, "reference must hold at least one image"),
        (np.zeros((8, 8)), {"reference": np.zeros(8)}, "as many axes of space as the first; got 1 and 2"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(images, options, message):
    with pytest.raises((ValueError, TypeError), match=r"^measure: .*\.$") as caught:
        measure(images, **options)
    assert message in str(caught.value)


# The statistic.


def test_the_tail_is_that_of_fisher():
    at = lines.fractions([2, 3])
    ratio = np.array([7.0, 5.0])
    a = 24 / lines.HANN
    want = [stats.f.sf(7.0, 1, 2 * a), stats.f.sf(5.0, 2, 2 * a)]
    np.testing.assert_allclose(lines.tail(ratio, 24, half=at.half), want, rtol=1e-9)
    assert lines.needed(want[0], 24, half=True) == pytest.approx(7)
    assert lines.needed(want[1], 24, half=False) == pytest.approx(5)


def test_bins_of_a_hann_window_are_worth_fewer():
    n = 256
    window = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2
    auto = abs(np.fft.fft(window**2)) / (window**2).sum()
    assert 1 + 2 * (auto[1:4] ** 2).sum() == pytest.approx(lines.HANN, abs=0.06)


def test_directions_are_those_of_half_a_sphere():
    assert fields.directions(2) == [(0, 1), (1, 0), (1, 1), (1, -1)]
    assert len(fields.directions(3)) == (3**3 - 1) // 2


def test_a_wave_has_its_height():
    wave = 3 * 2**0.5 * np.cos(2 * np.pi * COLUMNS / 8 + 1)
    random = np.random.default_rng(0)
    (picture,) = pictures_of("measure", 128 + wave + random.normal(0, 1, (N, N)))
    at = lines.fractions([8])
    table = lines.table_of(fields.spectra_of(picture), at)
    key = fields.Key("luma", 0, (0, 1))
    assert lines.heights(key, table[key], at)[0] == pytest.approx(3, rel=0.1)


# Photographs that no one here took.


@pytest.fixture(scope="module")
def photographs():
    data = pytest.importorskip("skimage.data")
    random = np.random.default_rng(1)
    whole = [data.astronaut(), data.coffee(), data.rocket(), data.immunohistochemistry()]
    found = []
    for i in range(40):
        photo = whole[i % 4]
        y, x = (int(random.integers(0, n - N + 1)) for n in photo.shape[:2])
        found.append(photo[y : y + N, x : x + N])
    return found


def test_photographs_are_clean(photographs):
    assert sum(image.verdict == "pattern" for image in measure(photographs).images) <= 1


@each("name", ("board", "columns", "rows"))
def test_one_grey_level_is_seen_in_photographs(name, photographs):
    grid, period, orientation = GRIDS[name]
    found = measure([pixels(photo + grid[..., None]) for photo in photographs]).images
    right = [(f.verdict, f.period, f.orientation) == ("pattern", period, orientation) for f in found]  # fmt: skip
    assert np.mean(right) >= 0.9
    assert tconvjax.measure is measure
