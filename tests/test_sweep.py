"""Sweeps: validated at every point, run side by side, stopped and continued."""

import csv
import json
import signal

import commands
import pytest
from cases import each
from folders import CHECKERBOARD, SMALL, SUPERRESOLUTION

from experiments import comparison, config, records
from experiments.sweeps import points

RATES, SIZES = "options.learning_rate", "options.latent"


def of(table):
    errors = []
    found = points(table, errors)
    assert not errors
    return found


def wrong(table):
    errors = []
    points(table, errors)
    return errors


# Points.


def test_a_grid_has_every_combination_and_a_zip_those_beside_each_other():
    axes = {"a": [1, 2], "b": ["x", "y"]}
    assert of({"axes": axes}) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    assert of({"axes": axes, "mode": "zip"}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert of({}) == [{}]


def test_points_are_excluded_by_all_that_they_match():
    axes = {"a": [1, 2], "b": {"c": [[1], [2, 3]]}}  # b.c, as TOML reads it without quotes
    excludes = [{"a": 1, "b": {"c": [2, 3]}}, {"a": 2, "b.c": [1]}]
    assert of({"axes": axes, "exclude": excludes}) == [
        {"a": 1, "b.c": [1]},
        {"a": 2, "b.c": [2, 3]},
    ]


WRONG = {
    "no table": (3, "sweep: expected a table, got 3"),
    "key": ({"axis": {}}, "sweep.axis: unknown key; expected one of 'mode', 'axes', 'exclude'"),
    "mode": ({"mode": "random"}, "sweep.mode: expected 'grid' or 'zip', got 'random'"),
    "value": ({"axes": {"a": 1}}, "sweep.axes.a: expected a list of values, got 1"),
    "empty": ({"axes": {"a": []}}, "sweep.axes.a: expected a list of values, got []"),
    "lengths": (
        {"mode": "zip", "axes": {"a": [1], "b": [1, 2]}},
        "sweep.axes: a zip needs axes of one length; a has 1, b has 2",
    ),
    "exclude": (
        {"axes": {"a": [1]}, "exclude": [{"b": 1}]},
        "sweep.exclude[0].b: is no axis of the sweep",
    ),
    "nothing excluded": (
        {"axes": {"a": [1]}, "exclude": [{"a": 2}]},
        "sweep.exclude[0]: drops no point; none matches {'a': 2}",
    ),
    "nothing left": ({"axes": {"a": [1]}, "exclude": [{"a": 1}]}, "sweep: no point is left"),
}  # fmt: skip


@each("what", WRONG)
@pytest.mark.refuses
def test_wrong_sweeps_are_refused(what):
    table, error = WRONG[what]
    assert wrong(table) == [error]


# Configs.


@pytest.fixture
def file(tmp_path):
    """A config with a sweep."""
    text = CHECKERBOARD.read_text().replace("[quick] ", "[sweep.axes]\nsteps = [50, 100]\n[quick] ")
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_every_point_is_a_config_with_a_folder_of_its_own(file):
    swept = config.load_sweep(file, [f"{SIZES}=4"], [f"{RATES}=1e-3,2e-3"])
    assert [point for point, _ in swept] == [
        {"steps": steps, RATES: rate} for steps in (50, 100) for rate in (1e-3, 2e-3)
    ]
    for point, resolved in swept:
        options = [variant.options for variant in resolved.variants]
        assert {(o.learning_rate, o.latent) for o in options} == {(point[RATES], 4)}
        settings = [f"{SIZES}=4", f"steps={point['steps']}", f"{RATES}={point[RATES]}"]
        by_hand = config.load(CHECKERBOARD, settings)
        assert resolved == by_hand
    assert len({resolved.digest for _, resolved in swept}) == 4
    words = config.load_sweep(CHECKERBOARD, [], ["name=first, second"])
    assert [resolved.name for _, resolved in words] == ["first", "second"]


@pytest.mark.refuses
def test_all_points_are_checked_before_any_runs(file):
    with pytest.raises(config.ConfigError) as caught:
        config.load_sweep(file, ["latent=3"], ["options.b1=0,2", "chunk_steps=10,70", "steps"])
    assert caught.value.errors == (
        "--sweep steps: expected key.path=VALUE,VALUE,..",
        "latent: unknown key",
        "at steps=50 chunk_steps=70: chunk_steps: must divide steps; got 70 and steps=50",
        "at options.b1=2: options.b1: must be below 1.0, got 2.0",
        "at steps=100 chunk_steps=70: chunk_steps: must divide steps; got 70 and steps=100",
    )
    with pytest.raises(config.ConfigError, match=r"two points are the same run: options\.b1=0\.0"):
        config.load_sweep(CHECKERBOARD, [], ["options.b1=0,0.0"])
    with pytest.raises(config.ConfigError, match="Use the command 'sweep'"):
        config.load(file)


# Runs.

ONE = [
    "--set=steps=4",
    "--set=variant=[{name='up'}]",
    '--set=expect=[{claim="c",metric="harmonic_share",relation="up < 0.1 at init",source="s"}]',
]


def arguments(out, *more, rates="1e-3,2e-3,3e-3"):
    given = ["sweep", str(SUPERRESOLUTION), *SMALL, *ONE]
    return [*given, f"--sweep={RATES}={rates}", "--out", str(out), *more]


def sweep(out, *more):
    return commands.run(arguments(out, *more))


def results(out):
    (folder,) = out.glob("*-sweep-*")
    return records.read_json(folder / "summary.json"), (folder / "results.csv").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    done = sweep(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_sweep_says_what_its_runs_say(straight, tmp_path):
    summary, table = results(straight)
    assert [entry["status"] for entry in summary["points"]] == ["complete"] * 3
    rows = list(csv.DictReader(table.splitlines()))
    for entry, row in zip(summary["points"], rows[:: len(rows) // 3], strict=True):
        alone = records.read_json(straight / entry["folder"] / "summary.json")
        assert entry["claims"] == alone["claims"]
        assert float(row[RATES]) == entry["settings"][RATES]
        value = alone["variants"][row["variant"]]["final"][row["metric"]]
        for key in ("mean", "low", "high"):
            assert float(row[key]) == value[key]
    page = comparison.write(list(straight.glob("*-sweep-*")), tmp_path / "page.html").read_text()
    for entry in summary["points"]:
        assert entry["folder"] in page
        assert f'<td class="n">{entry["settings"][RATES]}</td>' in page


@pytest.mark.slow
def test_a_sweep_stopped_and_shared_ends_with_the_same_result(straight, tmp_path):
    """Stopped in two ways, while two processes work; then continued by two commands at once."""
    for how, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = len(list(tmp_path.glob("*/checkpoints/*/*")))
        process = commands.Command(arguments(tmp_path, "--jobs=2"))
        commands.until(lambda n=before: len(list(tmp_path.glob("*/checkpoints/*/*"))) > n, process)
        process.kill(how)
        assert process.wait(60).returncode == status
    both = [commands.Command(arguments(tmp_path)) for _ in range(2)]
    for process in both:
        done = process.wait()
        assert done.returncode == 0, done.stderr
    assert sweep(tmp_path).returncode == 0  # the last of both may have ended before the other's run
    assert results(tmp_path) == results(straight)


@pytest.mark.slow
def test_a_point_that_fails_does_not_stop_the_others(tmp_path):
    done = sweep(tmp_path, f"--sweep={RATES}=1e30,1e-3")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    summary, _ = results(tmp_path)
    assert [entry["status"] for entry in summary["points"]] == ["failed", "complete"]
    assert "is not finite" in summary["points"][0]["message"]


@pytest.mark.slow
@pytest.mark.refuses
def test_print_config_shows_all_points(tmp_path):
    done = sweep(tmp_path, "--print-config")
    shown = json.loads(done.stdout)
    assert [entry["settings"][RATES] for entry in shown] == [1e-3, 2e-3, 3e-3]
    assert sweep(tmp_path, "--jobs=0").stderr == "--jobs: must be at least 1, got 0\n"
    assert not list(tmp_path.iterdir())
