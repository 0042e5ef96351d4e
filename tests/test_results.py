"""Experiments that measure without training, run from their configs, and the page of several experiments."""

from pathlib import Path

import pytest
from cases import each

from experiments import config, records, report
from experiments.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
pytestmark = pytest.mark.usefixtures("promotion")


@pytest.mark.slow
def test_results_are_what_the_folders_say(tmp_path, capsys):
    paths = [str(CONFIGS / f"{name}.toml") for name in ("superposition", "blur_ladder")]
    page = tmp_path / "RESULTS.md"
    runs = tmp_path / "runs"
    command = ["results", *paths, "--quick", "--out", str(runs), "--page", str(page)]
    assert main(command) == 0
    text = page.read_text()
    for folder in runs.iterdir():
        run = records.read_complete(folder)
        name = run.config["name"]
        assert f"## {name}" in text
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
        picture = page.parent / "docs" / "results" / f"{name}_measured.png"
        assert picture.read_bytes() == (folder / "measured.png").read_bytes()
        assert f"(docs/results/{name}_measured.png)" in text
        panels = page.parent / "docs" / "results" / f"{name}_panels.png"
        assert panels.exists() == (name == "superposition")
    capsys.readouterr()
    assert main(command) == 0  # complete: nothing but the page is made
    assert capsys.readouterr().out.count("complete already") == 2
    assert page.read_text() == text


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
