"""The pages in a real browser: Debian's chromium, or any other of its family on the PATH, driven by playwright."""

import contextlib
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from cases import each
from folders import make_benchmark, make_run, tiny, two_curves

from experiments import comparison

api = pytest.importorskip(
    "playwright.sync_api", reason='playwright is not installed; pip install "tconvjax[browser]"'
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:
    pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH", allow_module_level=True)
pytestmark = pytest.mark.slow

PAGES = ("run", "comparison", "benchmark")
VISIBLE = "images => images.filter(image => image.checkVisibility()).map(image => image.alt)"
CONTRASTS = """() => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => channels(color).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => {
    const color = getComputedStyle(element).backgroundColor;
    return channels(color)[3] === 0 ? background(element.parentElement) : color;
  };
  const texts = [...document.querySelectorAll("body *")].filter(element => element.checkVisibility()
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  return texts.map(element => {
    const pair = [getComputedStyle(element).color, background(element)].map(luminance);
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def browser():
    # Without the sandbox, which root cannot have; the pages are our own.
    with (
        api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    question = f"<script>alert(1)</script> {200 * 'w'}"
    first = make_run(out, replace(tiny(), question=question))
    second = make_run(out, replace(tiny("options.gamma=0.3"), question=question))
    with two_curves():
        compared = comparison.write([first, second])
    return {
        "run": comparison.write([first]),
        "comparison": compared,
        "benchmark": make_benchmark(out, question),
    }


@contextlib.contextmanager
def opened(browser, path, **options):
    """Opens a page; it must stay without a word to the console, and ask for nothing but itself."""
    with browser.new_context(**options) as context:
        page = context.new_page()
        said, requests = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert said == []
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


def visible(page, selector):
    return page.eval_on_selector_all(selector, VISIBLE)


@each("which", PAGES)
def test_a_page_opens_quietly_with_all_its_pictures(browser, pages, which):
    with opened(browser, pages[which]) as page:
        widths = page.eval_on_selector_all("img", "images => images.map(i => i.naturalWidth)")
        assert len(widths) >= (1 if which == "benchmark" else 5)
        assert min(widths) >= 128
        assert all(page.eval_on_selector_all("img", "images => images.map(i => i.alt)"))
        assert "<script>alert(1)</script>" in page.inner_text("main")


@each("which", PAGES)
def test_a_page_has_an_outline(browser, pages, which):
    with opened(browser, pages[which]) as page:
        headings = page.eval_on_selector_all(
            "h1, h2, h3, h4, h5, h6", "all => all.map(h => Number(h.tagName[1]))"
        )
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(headings))
        assert page.get_attribute("html", "lang") == "en"
        assert page.title()
        assert page.locator("main").count() == 1
        assert page.locator("table:not(:has(th[scope=col]))").count() == 0


def test_the_slider_works_by_keyboard(browser, pages):
    with opened(browser, pages["run"]) as page:
        slider, output = page.get_by_label("Training step"), page.locator("output")
        for _ in range(10):
            page.keyboard.press("Tab")
            if slider.evaluate("slider => slider === document.activeElement"):
                break
        shown = {}
        for key, step in (
            ("End", "6"), ("ArrowLeft", "4"), ("ArrowLeft", "2"), ("ArrowRight", "4"),
            ("Home", "0"), ("ArrowLeft", "0"), ("End", "6"),
        ):  # fmt: skip
            page.keyboard.press(key)
            assert output.inner_text() == step
            assert slider.get_attribute("aria-valuetext") == step
            found = visible(page, ".frame img")
            assert len(found) == 4  # samples and spectra of two variants
            assert all(alt.endswith(f"at step {step}") for alt in found)
            box = page.locator(".frame:visible img").first.bounding_box()
            shown[step] = page.screenshot(clip=box)
        assert len(set(shown.values())) == 4


@each("which", PAGES)
def test_everything_that_scrolls_or_opens_is_reached_and_seen_by_keyboard(browser, pages, which):
    with opened(browser, pages[which], viewport={"width": 360, "height": 740}) as page:
        outline = "() => getComputedStyle(document.activeElement).outlineStyle"
        reached = []
        for _ in range(30):
            page.keyboard.press("Tab")
            tag = page.evaluate("document.activeElement.tagName")
            if tag == "BODY":
                break
            assert page.evaluate(outline) == "solid"
            reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
        boxes = page.eval_on_selector_all(
            "body *",
            "all => all.filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth)"
            ".filter(e => getComputedStyle(e).overflowX === 'auto')"
            ".map(e => [e.outerHTML.slice(0, 200), e.getAttribute('aria-label'), e.getAttribute('tabindex')])",
        )
        assert len(boxes) >= 2
        for box, label, index in boxes:
            assert box in reached
            assert label
            assert index == "0"  # chromium alone would reach it anyway
        expected = ["<summary"] * {"run": 2, "comparison": 0, "benchmark": 3}[which]
        if which == "run":
            expected.insert(0, "<input")
        assert [r.split(" ")[0].split(">")[0] for r in reached if "<div" not in r[:4]] == expected


@each("which", PAGES)
@each("width", (360, 1280))
def test_a_page_does_not_scroll_sideways(browser, pages, which, width):
    with opened(browser, pages[which], viewport={"width": width, "height": 740}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width


@each("which", PAGES)
@each("scheme", ("light", "dark"))
def test_text_stands_out(browser, pages, which, scheme):
    with opened(browser, pages[which], color_scheme=scheme) as page:
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 50
        assert min(contrasts) >= 4.5
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@each("which", PAGES)
def test_a_printed_page_is_black_on_white(browser, pages, which):
    with opened(browser, pages[which], color_scheme="dark") as page:
        page.emulate_media(media="print")
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert background == "rgb(255, 255, 255)"
        assert min(page.evaluate(CONTRASTS)) >= 7
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        breaks = page.eval_on_selector_all(
            "figure, tr", "all => all.map(e => getComputedStyle(e).breakInside)"
        )
        assert set(breaks) == {"avoid"}


def test_a_printed_page_shows_what_is_folded_or_moved(browser, pages):
    with opened(browser, pages["run"]) as page:
        folded = page.locator("details pre")
        opens = lambda: folded.evaluate_all("all => all.map(e => e.checkVisibility())")
        assert opens() == [False, False]
        page.get_by_label("Training step").fill("1")
        page.emulate_media(media="print")
        assert opens() == [True, True]
        assert all(box["height"] > 50 for box in (folded.nth(i).bounding_box() for i in range(2)))
        assert not page.get_by_label("Training step").is_visible()
        assert [alt[-1] for alt in visible(page, ".frame img")] == [*"0000", *"6666"]
        page.emulate_media(media="screen")
        assert [alt[-1] for alt in visible(page, ".frame img")] == [*"2222"]


def test_without_scripts_the_first_and_the_last_step_are_seen(browser, pages):
    with opened(browser, pages["run"], java_script_enabled=False) as page:
        assert page.locator(".frame:visible").count() == 2
        assert page.locator(".frame:visible figcaption").all_inner_texts() == [
            f"{name}, step {step}" for step in (0, 6) for name in ("last_two", "none")
        ]
        assert not page.locator("input").is_visible()
