"""The pages in Markdown: links lead somewhere, names exist, printed output is what the commands print."""

import inspect
import re
from collections import Counter
from pathlib import Path

from cases import each
from flax import linen, nnx

import tconvjax
from tconvjax import analysis, cli, initializers, interop, metrics
from tconvjax import linen as tlinen
from tconvjax import nnx as tnn

ROOT = Path(__file__).parent.parent
TOP = ("README.md", "CONTRIBUTING.md", "RESULTS.md", "RESULTS_GPU.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("**/*.md"))]
MODULES = (tconvjax, analysis, initializers, interop, metrics, tnn, tlinen)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LONGEST_README = 150  # lines


def prose(page):
    """Returns a page without its blocks of code, in which '#' and '](' mean other things."""
    return CODE.sub("", page.read_text())


def anchors(page):
    """Returns the anchors that GitHub gives to headings: words in lower case, joined by hyphens."""
    found, count = [], Counter()
    for heading in HEADING.findall(prose(page)):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{anchor}-{count[anchor]}" if count[anchor] else anchor)
        count[anchor] += 1
    return found


def broken_links(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"https?:", link):
            continue
        address, _, anchor = link.partition("#")
        target = (page.parent / address).resolve() if address else page
        if not target.is_relative_to(ROOT) or not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: no such heading among {anchors(target)}"


@each("page", [page.relative_to(ROOT) for page in PAGES])
def test_links_lead_to_files_and_headings(page):
    assert not list(broken_links(ROOT / page))


def test_broken_links_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text(
        "# A `b`, c\n\n```console\n# no heading\n```\n\n## Twice\n## Twice\n"
    )
    good = ("other.md", "other.md#a-b-c", "#here", "other.md#twice-1", "https://a.b/c#d")
    bad = ("none.md", "other.md#no-heading", "other.md#twice-2", "#there", "../outside.md")
    (tmp_path.parent / "outside.md").write_text("")
    page.write_text("# Here\n" + " ".join(f"[a]({link})" for link in (*good, *bad)))
    assert [line.split(": ")[0] for line in broken_links(page)] == [*bad]


def test_the_readme_is_short_and_leads_to_all_pages():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= LONGEST_README
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text


def test_the_map_for_contributors_names_what_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:tconvjax|experiments|tests|configs|docs)/[\w/.]*)`", text)
    assert len(paths) > 50
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


@each("page", [page.name for page in (ROOT / "docs").glob("*.md")])
def test_names_in_prose_are_public(page):
    homes = {module.__name__.rpartition(".")[2]: module for module in MODULES}
    for module, name in re.findall(
        r"`(?:tconvjax\.)?(\w+)\.([a-z]\w+)[`(]", prose(ROOT / "docs" / page)
    ):
        assert module not in homes or hasattr(homes[module], name), f"{module}.{name}"


def test_every_public_function_and_layer_is_on_a_page():
    text = (ROOT / "docs" / "operators.md").read_text()
    text += (ROOT / "docs" / "layers.md").read_text() + (ROOT / "docs" / "interop.md").read_text()
    for module in MODULES:
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", "").startswith("tconvjax") and name[0] != "_"
            if ours and (inspect.isfunction(value) or issubclass(value, nnx.Module | linen.Module)):
                assert f"`{name}`" in text, name


def test_explain_prints_what_the_page_shows(capsys):
    text = (ROOT / "docs" / "command_line.md").read_text()
    command, shown = re.search(
        r"^\$ tconvjax (explain .*)\n((?s:.*?))```$", text, re.MULTILINE
    ).groups()
    assert cli.main(command.split()) == 0
    assert capsys.readouterr().out == shown
