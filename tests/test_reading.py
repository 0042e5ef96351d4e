"""What a command is given, or finds in a folder: files that are none, damaged ones, values beyond all bounds."""

import json
import os
import re
import socket
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from folders import CHECKERBOARD, make_run, tiny

from experiments import (
    checkpoints,
    claims,
    config,
    data,
    pictures,
    reading,
    records,
    report,
    sweeps,
)
from experiments.__main__ import main

pytestmark = pytest.mark.refuses


def numbered(name, values):
    """Parametrizes with values too long for names of tests."""
    return pytest.mark.parametrize(name, values, ids=map(str, range(len(values))))


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**33)


STRANGE = {  # what stands in the place of a file, and why it is none
    "fifo": (fifo, "expected a regular file; it is a FIFO"),
    "folder": (lambda path: path.mkdir(), "expected a regular file; it is a folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "expected a regular file; it is a device"),
    "socket": (unix_socket, "expected a regular file; it is a socket"),
    "circle": (lambda path: path.symlink_to(path), "symbolic links"),
    "nothing": (lambda path: path.symlink_to("/nowhere"), "No such file"),
    "large": (sparse, "expected at most|is not a zip"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe = 1"), "UTF-8|not a zip"),
    "NUL": (lambda path: path.write_bytes(b'"a\0"'), "not valid|not a zip"),
    "deep": (lambda path: path.write_text("[" * 10**5), "within each other|key part|not a zip"),
}  # fmt: skip
READERS = {
    "toml": reading.toml,
    "json": reading.record,
    "npz": reading.archive,
}


@each("what", STRANGE)
@each("how", READERS)
def test_what_is_no_file_of_a_kind_is_refused_without_waiting(what, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make, message = STRANGE[what]
    make(tmp_path.joinpath("file") if what != "socket" else tmp_path.relative_to(tmp_path) / "file")
    with pytest.raises(reading.Unreadable, match=message) as caught:
        READERS[how](tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@each("what", ("fifo", "device"))
def test_images_are_files(what, tmp_path):
    STRANGE[what][0](tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image: expected a regular"):
        data.load({"source": "folder", "path": str(tmp_path)})


def test_archives_are_weighed_before_they_are_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.npy", b"\0" * 10**6)
    monkeypatch.setattr(os, "sysconf", lambda name: 1000 if name == "SC_PAGE_SIZE" else 1)
    with pytest.raises(ValueError, match=r"a\.npz: cannot be used: its arrays take .* GiB"):
        data.load({"source": "npz", "path": str(tmp_path / "a.npz")})


def test_a_member_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("image", b"text")
    with pytest.raises(reading.Unreadable, match="'image' is no array"):
        reading.archive(tmp_path / "a.npz")


JSON = {
    "1" * 5000: "is not valid JSON: Exceeds",
    str(2**63): "expected integers of at most 64 bits; got one of 64",
    "NaN": "NaN is no number",
    "[" * 40 + "]" * 40: "expected at most 32 tables and lists within each other",
    r'"\ud800"': r"expected text in UTF-8; got '\\ud800'",
    r'{"a\u0000": 1}': "expected text without NUL",
    "": "is not valid JSON",
}


@numbered("text", JSON)
def test_values_have_bounds(text):
    with pytest.raises(reading.Unreadable, match=JSON[text]):
        reading.parse_json(text.encode())


SHAPE = {"a": int, "b": {...: [{"c": float | None}]}}


def test_a_shape_says_where_a_value_differs():
    assert reading.misfit({"a": 1, "b": {"x": [{"c": None, "d": 3}]}, "e": 2}, SHAPE) == ""
    wrong = {
        "a: missing": {"b": {}},
        "a: expected int, got True": {"a": True, "b": {}},
        "b: expected a table, got []": {"a": 1, "b": []},
        "b.x: expected a list, got 'text'": {"a": 1, "b": {"x": "text"}},
        "b.x.1.c: expected float or null, got 'text'": {
            "a": 1,
            "b": {"x": [{"c": 0.5}, {"c": "text"}]},
        },
        "the whole: expected a table, got 3": 3,
    }
    assert [reading.misfit(value, SHAPE) for value in wrong.values()] == list(wrong)


# Configs.


def refused(capsys, *arguments):
    """Returns the line that a command ends in."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert all(len(line) < 2000 for line in said.splitlines())
    return said


DIGITS = "1" * 5000
SETTINGS = {
    f"steps={DIGITS}": "--set steps=11.*: is not valid TOML: Exceeds the limit",
    f"steps=0x{DIGITS}": "expected integers of at most 64 bits; got one of",
    f"steps={10**18}": f"steps: must be at most {2**31 - 1}, got {10**18}",
    f"chunk_steps={2**31}": "chunk_steps: must be at most",
    f"seeds=[{2**70}]": "expected integers of at most 64 bits; got one of 71",
    f"seeds=[{2**40}]": r"seeds\[0\]: must be at most 4294967295",
    f"options.samples={2**40}": "options.samples: must be at most",
    f"options.latent=-{2**40}": "options.latent: must be at least",
    "question=[" + "[" * 5000: "within each other",
    "a" + ".a" * 5000 + "=1": "expected at most 32 names; got 5001",
    'question="a\\u0000b"': "expected text without NUL",
    "question=\udcff": "command line: expected text in UTF-8",
    "question=a\0b": "command line: expected text without NUL",
    "name=" + "n" * 200: "name: expected at most 100 bytes",
    "data={source='npz',path='a',more=" + "[" * 40 + "]" * 40 + "}": "within each other",
    f"data={{source='photos',size={2**40}}}": "data.size: must be at most",
}


@numbered("setting", SETTINGS)
def test_settings_have_bounds(setting, capsys, tmp_path):
    said = refused(capsys, "run", CHECKERBOARD, "--set", setting, "--out", tmp_path)
    assert re.search(SETTINGS[setting], said), said
    assert not list(tmp_path.iterdir())


@each("what", [what for what in STRANGE if what not in ("large", "socket")])
@each("command", ("run", "sweep", "results"))
def test_a_config_is_a_file(what, command, tmp_path, capsys):
    STRANGE[what][0](tmp_path / "c.toml")
    said = refused(capsys, command, tmp_path / "c.toml", "--out", tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'c.toml'}: cannot be read: ")
    assert said.count("\n") == 1


def chain(folder, length, last):
    for i in range(length):
        (folder / f"{i}").mkdir()
        text = f'extends = "../{i + 1}/c.toml"' if i < length - 1 else last
        (folder / f"{i}" / "c.toml").write_text(text)
    return folder / "0" / "c.toml"


CIRCLES = {  # what the last file of three extends
    "back": "../0/c.toml",
    "detour": "../1/../2/../0/c.toml",
    "link": "../link.toml",
    "through a linked folder": "../linked/c.toml",
    "itself": "c.toml",
    "itself by a detour": "../2/c.toml",
}


@each("what", CIRCLES)
def test_circles_are_found_by_whatever_name(what, tmp_path, capsys):
    (tmp_path / "link.toml").symlink_to(tmp_path / "1" / "c.toml")
    (tmp_path / "linked").symlink_to(tmp_path / "0")
    path = chain(tmp_path, 3, f'extends = "{CIRCLES[what]}"')
    assert "extends this file; break the circle" in refused(capsys, "run", path)


def test_chains_end(tmp_path, capsys):
    path = chain(tmp_path, 40, "steps = 1")
    assert "expected at most 16 files behind each other" in refused(capsys, "run", path)
    assert config._table_of(tmp_path / "30" / "c.toml") == {"steps": 1}
    (tmp_path / "long.toml").write_text(f'extends = "{"a/" * 10**5}"')
    assert "File name too long" in refused(capsys, "run", tmp_path / "long.toml")


def test_grids_are_counted_before_they_are_made(capsys, tmp_path):
    many = ",".join(map(str, range(50)))
    axes = [f"--sweep=options.k{i}={many}" for i in range(6)]
    said = refused(capsys, "sweep", CHECKERBOARD, *axes, "--out", tmp_path)
    assert f"sweep.axes: expected at most 10000 points; these axes span {50**6}" in said
    errors = []
    zipped = {"mode": "zip", "axes": {"a": list(range(10_001))}}
    assert sweeps.points(zipped, errors) == []
    assert errors == ["sweep.axes: expected at most 10000 points; these axes span 10001"]
    said = refused(capsys, "sweep", CHECKERBOARD, "--sweep", f"steps=1,{DIGITS}")
    assert "is not valid TOML: Exceeds" in said


RELATIONS = {
    "a < " + "1" * 40_000 + " at final": "expected at most 500 characters; got 40013",
    "rank correlation with m < " + "1" * 40_000: "expected at most 500 characters",
    "a < 1e999 at final": "expected numbers that 64 bits can hold",
    "a < 1" + "0" * 400 + " at final": "expected numbers that 64 bits can hold",
    "a < 1e999 * b at final": "expected numbers that 64 bits can hold",
    "a = b +- 1e999 at final": "expected numbers that 64 bits can hold",
}


@numbered("relation", RELATIONS)
def test_relations_have_bounds(relation):
    claim = claims.Claim("c", "m", relation, "s")
    (error,) = claim.errors(["a", "b"])
    assert error.startswith(RELATIONS[relation])
    claim.names(["a", "b"]), claim.metrics  # ends


def test_a_folder_below_a_file_is_no_place(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deep" / "er"):
        for command in ("run", "sweep", "results"):
            said = refused(capsys, command, CHECKERBOARD, "--out", out)
            assert said == f"--out {out}: {tmp_path / 'file'} is no folder\n"
    page = tmp_path / "file" / "page.md"
    said = refused(capsys, "results", CHECKERBOARD, "--out", tmp_path, "--page", page)
    assert said.startswith(f"--page {page.parent}: ")
    assert "File name too long" in refused(capsys, "run", CHECKERBOARD, "--out", "n" * 5000)
    assert "File name too long" in refused(capsys, "report", "n" * 5000)
    assert (tmp_path / "file").read_text() == "mine"


# Folders of runs.


@pytest.fixture(scope="module")
def resolved():
    return tiny()


def test_links_of_others_are_not_followed(tmp_path, resolved):
    folder = tmp_path / f"{resolved.name}-{resolved.digest}"
    folder.mkdir()
    (tmp_path / "mine").write_text("mine")
    for name in (".lock", ".config.json.tmp"):
        (folder / name).symlink_to(tmp_path / "mine")
    with (
        pytest.raises(records.RunError, match=r"\.lock: cannot be used: is a symbolic link"),
        records.open_folder(tmp_path, resolved),
    ):
        pass
    (folder / ".lock").unlink()
    with records.open_folder(tmp_path, resolved):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
    (folder / ".lock").unlink()
    os.mkfifo(folder / ".lock")
    with (
        pytest.raises(records.RunError, match=r"\.lock: cannot be used: .* a FIFO"),
        records.open_folder(tmp_path, resolved),
    ):
        pass


DAMAGE = {
    "empty": "",
    "cut": '{"variant": "a", "st',
    "number": "3",
    "list": "[1]",
    "deep": "[" * 10**5,
    "no seed": '{"variant": "a", "step": 2, "m": 1.0}',
    "text for a number": '{"variant": "a", "step": 2, "seed": 0, "m": "1"}',
    "true for a number": '{"variant": "a", "step": true, "seed": 0, "m": 1}',
    "digits": '{"variant": "a", "step": 2, "seed": 0, "m": ' + DIGITS + "}",
    "bytes": "\udcff\udcfe",
    "NUL": "\0" * 300,
}


@each("what", DAMAGE)
def test_a_damaged_line_costs_itself_alone(what, tmp_path):
    for step in (0, 2, 4):
        records.append_metrics(tmp_path, "a", step, (0, 1), {"m": np.array([1.0, 2.0])})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes().split(b"\n")
    damaged = DAMAGE[what].encode(errors="surrogateescape")
    path.write_bytes(b"\n".join([*whole[:2], damaged, *whole[3:]]))
    lines = records.read_metrics(tmp_path)
    assert [(line["step"], line["seed"]) for line in lines] == [
        (0, 0),
        (0, 1),
        (2, 1),
        (4, 0),
        (4, 1),
    ]
    assert list(records.lacking(lines, ["a"], range(0, 5, 2), (0, 1))) == [(2, "a", 0)]
    assert records.collect(tmp_path, (0, 1))["a"][4] == {"m": [1.0, 2.0]}


def test_a_line_with_fewer_metrics_than_others_lacks(tmp_path):
    for step, names in ((0, "m"), (2, "ml"), (4, "ml")):
        values = {name: np.array([1.0, 2.0]) for name in names}
        records.append_metrics(tmp_path, "a", step, (0, 1), values)
    lines = records.read_metrics(tmp_path)
    assert not list(records.lacking(lines, ["a"], range(0, 5, 2), (0, 1)))
    del lines[3]["l"]
    assert list(records.lacking(lines, ["a"], range(0, 5, 2), (0, 1))) == [(2, "a", 1)]


def test_records_of_another_shape_are_one_line(tmp_path, capsys, resolved):
    folder = make_run(tmp_path, resolved)
    summary = json.loads((folder / "summary.json").read_text())
    wrong = {
        "claims.0.margin: missing": {"claims": [{k: "x" for k in records.SUMMARY["claims"][0] if k != "margin"}]},
        "variants.none.final: missing": {"variants": summary["variants"] | {"none": {}}},
        "lacks variant none": {"variants": {"last_two": summary["variants"]["last_two"]}},
        "real: expected a table": {"real": []},
    }  # fmt: skip
    for message, change in wrong.items():
        records.write_json(folder / "summary.json", summary | change)
        assert message in refused(capsys, "report", folder)
    records.write_json(folder / "summary.json", summary)
    for name in ("environment.json", "config.json", "summary.json"):
        kept = (folder / name).read_bytes()
        for damaged in (b"[1]", b"{}", b"[" * 10**5, b"\xff", DIGITS.encode()):
            (folder / name).write_bytes(damaged)
            assert name in refused(capsys, "report", folder)
        (folder / name).write_bytes(kept)


def test_a_picture_that_fails_is_a_line(tmp_path, capsys, resolved, monkeypatch):
    folder = make_run(tmp_path, resolved)

    def fail(*_):
        raise ZeroDivisionError("nothing\nto draw")

    monkeypatch.setattr(pictures, "_of_images", fail)
    monkeypatch.setattr(report, "small_pictures", fail)
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    page = (folder / "report.html").read_text()
    why = "cannot be drawn: ZeroDivisionError: nothing to draw"
    for what in (folder / "samples.png", folder / "overview.png", "samples along training"):
        assert f"{what}: {why}" in said
        assert f"{what}: {why}" in page
    assert [path.name for path in folder.glob("*.png")] == ["curves.png"]


@pytest.mark.usefixtures("x64")
def test_checkpoints_give_back_the_dtypes_that_they_were_given(tmp_path):

    state = {
        "a": jnp.arange(4.0),
        "b": [jnp.int32(3), jnp.ones(2, jnp.bfloat16)],
        "c": jnp.int64(1),
    }
    with checkpoints.open_checkpoints(tmp_path / "c") as store:
        for step in (1, 2):
            checkpoints.save(store, step, state)
    assert (state["a"].dtype, state["c"].dtype) == ("float64", "int64")
    with checkpoints.open_checkpoints(tmp_path / "c") as store:
        step, found = checkpoints.load_latest(store, state)
        for other in (jnp.arange(4, dtype="float32"), jnp.arange(5.0)):
            with pytest.raises(
                records.RunError, match=r"state\['a'\] is float64\[4\]; the run needs"
            ):
                checkpoints.load_latest(store, state | {"a": other})
    assert step == 2
    for saved, loaded in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        assert saved.dtype == loaded.dtype
        np.testing.assert_array_equal(saved, loaded)
    checkpoints.drop_after(tmp_path / "c", 1)
    with checkpoints.open_checkpoints(tmp_path / "c") as store:
        assert checkpoints.load_latest(store, state)[0] == 1
