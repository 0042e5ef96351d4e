"""Configs: everything wrong at once, before anything runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cases import each

from experiments import config
from experiments.claims import Claim, interval, judge

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))
CHECKERBOARD = CONFIGS[0].parent / "checkerboard.toml"


@each("path", CONFIGS)
@each("quick", (False, True))
def test_every_config_in_the_repository_is_valid(path, quick):
    resolved = config.load(path, quick=quick)
    assert len(resolved.digest) == 8
    assert resolved.task == "benchmark" or resolved.claims
    assert config.load(path, quick=quick) == resolved


@each("path", CONFIGS)
def test_a_config_resolves_to_what_it_did(path):
    """What `--print-config` printed when the file was last meant to change, or a default."""
    golden = Path(__file__).parent / "golden" / "configs" / f"{path.stem}.json"
    assert config.describe(config.load(path)) == json.loads(golden.read_text())


def test_resolves_options_of_variants_over_shared_ones_over_defaults():
    resolved = config.load(CHECKERBOARD, ["options.latent=8", "steps=100"], quick=True)
    assert [v.options.latent for v in resolved.variants] == [8, 8]
    assert resolved.variants[0].options.upsamplers == (
        "resize_conv",
        "conv_transpose",
        "conv_transpose",
    )
    assert (resolved.steps, resolved.seeds) == (100, (0, 1))
    assert resolved.digest != config.load(CHECKERBOARD, quick=True).digest


def test_reports_all_errors_at_once_with_what_was_meant(tmp_path):
    path = tmp_path / "wrong.toml"
    text = CHECKERBOARD.read_text()
    for good, bad in (
        ("\nsteps = 600", "\nstep = 600"),
        ("chunk_steps = 50", "chunk_steps = 1.5"),
        ("latent = 64", "latent = true"),
        ("gamma = 1.0", "gama = 1.0"),
        ("b1 = 0.0", "b1 = 3.0"),
        ("samples = 512", 'samples = "many"'),
        ('name = "none"', 'name = "real"'),
        ("none at init", "nothing at init"),
        ('= "last_two > last_one at final', '= "last_two >> last_one at final'),
    ):
        assert good in text
        text = text.replace(good, bad)
    path.write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        config.load(path)
    told = "\n".join(caught.value.errors)
    for line in (
        "step: unknown key; did you mean 'steps'?",
        "steps: missing",
        "chunk_steps: expected int, got 1.5",
        "options.gama: unknown key; did you mean 'gamma'?",
        "latent: expected int, got True",
        "options.b1: must be below 1.0, got 3.0",
        "samples: expected int, got 'many'",
        "variant.real.name: expected a unique identifier other than 'real', got 'real'",
        "unknown name 'nothing'",
        "expected 'VARIANT <",
    ):
        assert line in told, (line, told)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "options.upsamplers=['resize_conv','resize_conv']",
            "upsamplers has 2, generator_features has 3",
        ),
        (
            "options.upsamplers=['resize','resize_conv','resize_conv']",
            "did you mean 'resize_conv'?",
        ),
        ("task=gna", "did you mean 'gan'?"),
        ("data=mnist", "did you mean 'mnist5k'?"),
        ("seeds=[1,1]", "none twice"),
        ("chunk_steps=7", "must divide steps"),
        ("steps=0", "steps: must be at least 1, got 0"),
        ("name=../up", "as it names a folder"),
        (
            "options.generator_features=[64,0,16]",
            "generator_features[1]: must be at least 1, got 0",
        ),
        ("task=[1]", "task: expected str, got [1]"),
        ("seeds=[99999999999]", "seeds[0]: must be at most 4294967295"),
        ("options.learning_rate=1e400", "learning_rate: expected float, got inf"),
        ("options.b2=1.0", "options.b2: must be below 1.0, got 1.0"),
        ("options.upsamplers=3", "upsamplers: expected a list, got 3"),
        ("claims=[]", "did you mean '[[expect]]'?"),
        ("steps.x=1", "steps is not a table"),
        ("steps", "expected key.path=VALUE"),
    ],
)
def test_settings_are_checked_like_the_file(setting, message):
    if setting.startswith("options.upsamplers"):  # each variant of the file names its own
        with pytest.raises(config.ConfigError) as caught:
            config.load(
                CHECKERBOARD,
                [setting.replace("options.", "variant=[{name='a',", 1) + "}]", "expect=[]"],
            )
    else:
        with pytest.raises(config.ConfigError) as caught:
            config.load(CHECKERBOARD, [setting])
    assert message in str(caught.value)


@pytest.mark.slow
def test_command_line_answers_bad_input_with_status_two(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        str(CHECKERBOARD),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "--set", "stepps=3", "--set", "data=x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "stepps: unknown key; did you mean 'steps'?" in done.stderr
    assert "data: unknown name 'x'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_errors_of_shared_options_are_told_once_and_variants_cannot_change_them_all(tmp_path):
    with pytest.raises(config.ConfigError) as caught:
        config.load(CHECKERBOARD, ["options.latent=true", "stepz=3", "chunk_steps=7"])
    assert [e.partition(":")[0] for e in caught.value.errors] == [
        "stepz",
        "chunk_steps",
        "options.latent",
    ]
    path = tmp_path / "c.toml"
    text = CHECKERBOARD.read_text()
    path.write_text(text.replace('name = "none"\n', 'name = "none"\nsamples = 8\n'))
    with pytest.raises(config.ConfigError, match=r"variant\.none\.samples: must be the same"):
        config.load(path)
    path.write_text(text.replace("classifier_steps = 50", "classifer_steps = 50"))
    with pytest.raises(config.ConfigError, match="classifer_steps: unknown key"):
        config.load(path)  # a [quick] table is checked also without --quick
    path.write_text(text.partition("[quick]")[0])
    with pytest.raises(config.ConfigError, match=r"no \[quick\] table"):
        config.load(path, quick=True)


@pytest.mark.parametrize(
    "relation",
    [
        "a > 1.2.3 * b at init",
        "a > e * b at init",
        "a > b + . at init",
        "a > nan at init",
        "real > 0.5 at init",
        "b > b at init",
        "a > c at init",
        "a = b at init",
        "a > b +- 1 at init",
        "a = b +- -1 at init",
        "a > b",
        "rank correlation with n > 0",
        "rank correlation with n = 0 +- 1 at init",
        "rank correlation with n > 0 at init",  # of two variants there is no order
    ],
)
def test_relations_that_cannot_be_computed_are_refused(relation):
    assert Claim("c", "m", relation, "s").errors(["a", "b"])


@pytest.mark.parametrize(
    "relation",
    [
        "a > 1e-3 at init",
        "a < 2 * real + 1e-3 at final",
        "a > -1.5 at init",
        "a = 2 * b - 1 +- 0.1 at final",
        "a = 0.75 ± 1e-2 at init",
    ],
)
def test_relations_with_any_number(relation):
    assert not Claim("c", "m", relation, "s").errors(["a", "b"])


def verdict(relation, left, right, real=1.0):
    values = {
        "a": {"init": {"m": left}, "final": {"m": left}},
        "b": {"init": {"m": right}, "final": {"m": right}},
    }
    return judge(Claim("c", "m", relation, "s"), values, {"m": real})["verdict"]


def test_verdicts():
    up, down = [3.0, 3.1, 2.9, 3.2], [1.0, 1.2, 0.9, 1.1]
    assert verdict("a > b at init", up, down) == "supported"
    assert verdict("a < b at init", up, down) == "not supported"
    assert verdict("a > 2 * b at final", up, down) == "supported"
    assert verdict("a > 3 * b at final", up, down) == "undecided"
    assert verdict("a > 2 * b + 2 at final", up, down) == "not supported"
    assert verdict("a < 3.5 at init", up, down) == "supported"
    assert verdict("b < 2 * real - 0.5 at init", up, down) == "supported"
    assert verdict("a > b at init", [3.0], [1.0]) == "undecided"  # one seed decides nothing
    close = [3.0, 3.01, 2.99, 3.0]
    assert verdict("a = 3 +- 0.1 at init", close, down) == "supported"
    assert verdict("a = 3.2 +- 0.1 at init", close, down) == "not supported"
    assert verdict("a = 2.8 +- 0.1 at init", close, down) == "not supported"
    assert verdict("a = 3.105 +- 0.1 at init", close, down) == "undecided"
    assert verdict("a = 3 +- 0.1 at init", up, down) == "undecided"  # the interval is wider
    noisy = [3.0, -1.0, 4.0, 0.5]
    assert verdict("a > b at init", noisy, down) == "undecided"
    # Paired: a common offset of a seed does not count as noise.
    offsets = [10.0, 20.0, 30.0, 40.0]
    assert (
        verdict(
            "a > b at init",
            [u + o for u, o in zip(up, offsets, strict=True)],
            [d + o for d, o in zip(down, offsets, strict=True)],
        )
        == "supported"
    )


def test_rank_correlations_order_all_variants():
    """Of three variants; seeds agree, or they do not."""
    claim = Claim("c", "m", "rank correlation with n > 0.5 at final", "s")
    assert not claim.errors(["a", "b", "c"])
    assert claim.metrics == ("m", "n")
    assert claim.names(["a", "b", "c"]) == {"a", "b", "c"}

    def judged(n, relation=claim.relation):
        m = {"a": [1.0, 1.1, 7.0], "b": [2.0, 2.2, 8.0], "c": [3.0, 2.9, 9.0]}
        values = {name: {"final": {"m": m[name], "n": n[name]}} for name in m}
        return judge(Claim("c", "m", relation, "s"), values, {})

    alike = {"a": [0.0, 5.0, 1.0], "b": [0.1, 50.0, 2.0], "c": [9.0, 51.0, 2.5]}
    assert judged(alike)["verdict"] == "supported"
    assert judged(alike)["margin"]["mean"] == 0.5
    opposite = {name: [-x for x in values] for name, values in alike.items()}
    assert judged(opposite)["verdict"] == "not supported"
    assert judged(opposite, "rank correlation with n < 0 at final")["verdict"] == "supported"
    mixed = {"a": [0.0, 5.0, 1.0], "b": [0.1, 4.0, 0.5], "c": [9.0, 3.0, 0.7]}
    assert judged(mixed)["verdict"] == "undecided"


def test_claims_name_metrics_that_all_their_variants_have():
    settings = ["variant=[{name='a'},{name='b'},{name='c',kernel_size=4}]"]
    claim = "expect=[{{claim='c',metric='detectability',relation='rank correlation with {} > 0 at init',source='s'}}]"
    assert config.load(CHECKERBOARD, [*settings, claim.format("phase_mean_fraction_2")])
    with pytest.raises(config.ConfigError, match="variant 'c' has no 'layer_1_imbalance'"):
        config.load(CHECKERBOARD, [*settings, claim.format("layer_1_imbalance")])
    with pytest.raises(config.ConfigError, match="unknown metric 'detectabilty'; did you mean"):
        config.load(CHECKERBOARD, [*settings, claim.format("detectabilty")])


def test_a_file_extends_another(tmp_path):
    (tmp_path / "base.toml").write_text(CHECKERBOARD.read_text())
    path = tmp_path / "more.toml"
    path.write_text(
        'extends = "base.toml"\nname = "more"\n[options]\nlatent = 8\n[quick]\nsteps = 30\n'
    )
    base, more = config.load(CHECKERBOARD), config.load(path)
    assert (more.name, more.claims, more.steps) == ("more", base.claims, base.steps)
    assert {v.options.latent for v in more.variants} == {8}
    assert {v.options.gamma for v in more.variants} == {v.options.gamma for v in base.variants}
    quick = config.load(path, quick=True)
    assert (quick.steps, quick.seeds) == (30, config.load(CHECKERBOARD, quick=True).seeds)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends = 3", "extends: expected the name of a file, got 3"),
        ('extends = "none.toml"', "none.toml: cannot be read"),
        ('extends = "own.toml"', "extends: own.toml extends this file; break the circle"),
    ],
)
def test_what_cannot_be_extended_is_refused(text, said, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(config.ConfigError, match=said):
        config.load(path)


def test_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert abs((high - low) / 2 - 4.302653 / 3**0.5) < 1e-5
