"""Experiments that measure without training, run from their configs, and the pages of several experiments."""

import re
from pathlib import Path

import pytest
from cases import each
from folders import make_run, tiny

from experiments import config, pictures, records, report, results
from experiments.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
pytestmark = pytest.mark.usefixtures("promotion")


HERE = {
    "date": "2026-01-02 03:04 UTC",
    "processor": "a processor",
    "device": "cpu (cpu)",
    "versions": {"jax": "0.10.1"},
}


def opening(name, question, said, index, link):
    """Returns how the page of an experiment begins."""
    means = f"[What the verdicts mean](../../{index})"
    return f"# {name}\n\n{question}\n\n{said} {means}{link}.\n\nSource: "


def test_an_index_and_a_page_for_each_run(tmp_path, monkeypatch):
    drawn = {"overview.png": b"overview", "curves.png": b"curves", "samples.png": b"samples"}
    monkeypatch.setattr(pictures, "of_run", lambda run: (drawn, [f"{run.config['name']}: a line"]))
    runs, names = [], ("small", "small_gpu", "alone")
    for name in names:
        resolved = tiny(f'name="{name}"', f'question="is {name} | more?"')
        run = records.read_complete(make_run(tmp_path / "runs", resolved))
        runs.append(run._replace(environment=run.environment | HERE))
    # Without a commit, without minutes, and with a claim that lost.
    runs[1].environment["commit"] = None
    runs[0].summary["minutes"] = runs[1].summary["minutes"] = 1.5
    (claim,) = runs[0].summary["claims"]
    margin = {"mean": -0.25, "low": -0.5, "high": 0.0}
    lost = {**claim, "claim": "a | b", "verdict": "not supported", "margin": margin}
    runs[0].summary["claims"] = [{**claim, "verdict": "supported"}, lost]
    index = tmp_path / "PAGE.md"
    assert results.write(runs, index) == [f"{name}: a line" for name in names]
    pages = tmp_path / "docs" / "results"
    assert {file.name for file in pages.glob("*.md")} == {"small.md", "small_gpu.md", "alone.md"}
    links = "[small](docs/results/small.md), [on a GPU](docs/results/small_gpu.md)"
    said = "1 of 2 claims are supported, 1 not supported: “a \\| b”."
    rows = [line for line in index.read_text().splitlines() if line.startswith("| [")]
    assert rows[0].startswith(f"| {links} | is small \\| more? | {said} | ")
    assert rows[1].startswith("| [small_gpu](docs/results/small_gpu.md), [on a CPU](docs/results/s")
    assert rows[2].startswith("| [alone](docs/results/alone.md) | is alone")
    assert rows[2].endswith(" | - |")
    text = (pages / "small.md").read_text()
    said = "1 of 2 claims are supported, 1 not supported: “a | b”."
    link = "; [on a GPU](small_gpu.md)"
    assert text.startswith(opening("small", "is small | more?", said, "PAGE.md", link))
    assert "cpu (cpu), jax 0.10.1, commit c0ffee with changes; " in text
    assert "| **not supported** | a \\| b | " in text
    assert " | -0.250 ± 0.25 | " in text
    assert "commit" not in (pages / "small_gpu.md").read_text()
    assert "minutes" not in (pages / "alone.md").read_text()
    assert [line for line in text.splitlines() if line[:2] == "##"] == [
        "## Claims",
        "## Before training",
        "## After training",
    ]
    for step in ("init", "final"):
        for row in report.rows_of(runs[0].summary, step):
            assert f"| {' | '.join(row)} |" in text
    for kind in ("overview", "curves"):
        assert f"](small_{kind}.png)" in text
        assert (pages / f"small_{kind}.png").read_bytes() == kind.encode()
    assert len(list(pages.glob("*.png"))) == 6


SAID = {
    "": "No claim is stated.",
    "sss": "All 3 claims are supported.",
    "su": "1 of 2 claims are supported, 1 undecided, none not supported.",
    "sun": "1 of 3 claims are supported, 1 undecided, 1 not supported: “c2”.",
    "nsn": "1 of 3 claims are supported, 2 not supported: “c0”; “c2”.",
}


@each("verdicts", SAID)
def test_an_answer_counts_verdicts_and_names_what_is_not_supported(verdicts):
    names = {name[0]: name for name in results.VERDICTS}
    claims = [{"claim": f"c{i}", "verdict": names[v]} for i, v in enumerate(verdicts)]
    assert results.answer(claims) == SAID[verdicts]


@each("index", ("RESULTS.md", "RESULTS_GPU.md"))
def test_recorded_pages_are_what_the_command_writes(index):
    root = CONFIGS.parent
    row = re.compile(r"^\| \[(\w+)\]\((.*?)\).*? \| (.*) \| (.*) \| \S+ \|$", re.MULTILINE)
    claim = re.compile(
        r"^\| \**(supported|undecided|not supported)\** \| (.*?) \| \w+: ", re.MULTILINE
    )
    rows = row.findall((root / index).read_text())
    assert len(rows) == (15 if index == "RESULTS.md" else 6)
    pages = {file.stem for file in (root / "docs" / "results").glob("*.md")}
    for name, address, question, said in rows:
        text = (root / address).read_text()
        claims = [{"verdict": verdict, "claim": words} for verdict, words in claim.findall(text)]
        assert results.answer(claims) == said
        other = results.twin(name, pages)
        link = f"; [{other['label']}]({other['address']})" if other else ""
        assert text.startswith(opening(name, question, said, index, link))


@pytest.mark.slow
def test_results_are_what_the_folders_say(tmp_path, capsys):
    paths = [str(CONFIGS / f"{name}.toml") for name in ("superposition", "blur_ladder")]
    page = tmp_path / "RESULTS.md"
    runs = tmp_path / "runs"
    command = ["results", *paths, "--quick", "--out", str(runs), "--page", str(page)]
    assert main(command) == 0
    written = tmp_path / "docs" / "results"
    texts = {file: file.read_text() for file in (page, *written.glob("*.md"))}
    for folder in runs.iterdir():
        run = records.read_complete(folder)
        name = run.config["name"]
        assert f"| [{name}](docs/results/{name}.md) | {run.config['question']} | " in texts[page]
        text = texts[written / f"{name}.md"]
        assert text.startswith(f"# {name}\n")
        assert run.environment["date"] in text
        assert run.environment["processor"] in text
        for claim in run.summary["claims"]:
            verdict = claim["verdict"]
            shown = verdict if verdict == "supported" else f"**{verdict}**"
            margin = report.format_interval(claim["margin"])
            assert (
                f"| {shown} | {claim['claim']} | {claim['metric']}: {claim['relation']} | {margin} |"
                in text
            )
        for row in report.rows_of(run.summary, "final"):
            assert f"| {' | '.join(row)} |" in text
        picture = written / f"{name}_measured.png"
        assert picture.read_bytes() == (folder / "measured.png").read_bytes()
        assert f"({name}_measured.png)" in text
        panels = written / f"{name}_panels.png"
        assert panels.exists() == (name == "superposition")
    capsys.readouterr()
    assert main(command) == 0  # complete: nothing but the pages is made
    assert capsys.readouterr().out.count("complete already") == 2
    assert {file: file.read_text() for file in texts} == texts


@pytest.mark.refuses
def test_what_cannot_share_a_page_is_refused_before_any_run(tmp_path, capsys):
    good, benchmark = (str(CONFIGS / f"{name}.toml") for name in ("superposition", "benchmark"))
    for arguments, said in (
        ([benchmark], "is a benchmark, which has a page of its own"),
        ([good, good], "2 configs have the name 'superposition'"),
        ([good, "--page=a.html"], "ends in .md; got a.html"),
        ([good, str(tmp_path / "none.toml")], "none.toml: cannot be read"),
    ):
        assert main(["results", *arguments, "--out", str(tmp_path / "runs")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@each("name", ("initialization", "equivariance", "inverse", "tones"))
def test_measuring_runs_leave_everything_behind(name, tmp_path, capsys):
    arguments = ["run", str(CONFIGS / f"{name}.toml"), "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "report" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    run = records.read_complete(folder)
    assert run.config["enable_x64"] == (name in ("equivariance", "inverse"))
    # Two seeds leave wide intervals; what is claimed must hold on average.
    assert all(claim["margin"]["mean"] > 0 for claim in run.summary["claims"])
    trained = name == "inverse"
    assert (folder / ("curves.png" if trained else "measured.png")).exists()
    page = (folder / "report.html").read_text()
    assert ("At the start" in page) == trained
    assert ("Measured" in page) == (not trained)
    assert main([*arguments, "--dry-run"]) == 0
    assert "complete" in capsys.readouterr().out


def test_a_dry_run_of_a_measurement_times_its_evaluation(tmp_path, capsys):
    path = str(CONFIGS / "superposition.toml")
    assert main(["run", path, "--quick", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "runs 6" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.refuses
def test_measurements_have_no_steps_and_claims_no_ends():
    path = CONFIGS / "blur_ladder.toml"
    for key in ("steps", "chunk_steps"):
        with pytest.raises(config.ConfigError, match=f"{key}: task 'blur_ladder' only measures"):
            config.load(path, [f"{key}=3"])
    claim = '{claim="c",metric="order",relation="holds_1_x2 > 0.5 at final",source="s"}'
    with pytest.raises(config.ConfigError, match=r"expected 'VARIANT < .* RIGHT \[\+ OFFSET\]' "):
        config.load(path, [f"expect=[{claim}]"])
    claim = '{claim="c",metric="last",relation="last_two > last_one",source="s"}'
    with pytest.raises(config.ConfigError, match=r"at init\|final"):
        config.load(CONFIGS / "checkerboard.toml", [f"expect=[{claim}]"])


@pytest.mark.refuses
def test_a_claim_about_what_a_variant_has_not_is_refused():
    claim = (
        '{claim="c",metric="harmonic_share_3d_x2",relation="pixel_conv_transpose > 0.5",source="s"}'
    )
    said = "variant 'pixel_conv_transpose' has no 'harmonic_share_3d_x2'"
    with pytest.raises(config.ConfigError, match=said):
        config.load(CONFIGS / "initialization.toml", [f"expect=[{claim}]"])
