"""Grid transfers as the faces of one convolution: local Fourier analysis, and the run of the config."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each

from experiments import config, records
from experiments.__main__ import main
from experiments.tasks import multigrid
from experiments.training import Length, make_train, traced_options
from tconvjax.analysis import adjoint_error

CONFIG = Path(__file__).parent.parent / "configs" / "multigrid.toml"


def numbers(**options):
    """Options as a task sees them."""
    given = multigrid.Options(**options)
    return replace(given, **{n: v[0] for n, v in traced_options([given]).items()})


def two_grid_factor(smoother, n):
    """Largest factor of a two-grid cycle with bilinear transfers over all frequencies of n x n pixels.

    The symbols are those of Trottenberg et al. 2001, chapter 4, on four frequencies that one coarse wave couples.
    """
    factors = []
    for i, j in np.ndindex(n // 2, n // 2):
        low = 2 * np.pi * (np.array([i, j]) / n - 0.25)
        if not low.any():
            continue  # the constant, which the equation leaves open
        t = low + np.pi * np.array([(0, 0), (1, 1), (1, 0), (0, 1)])
        a = 4 - 2 * np.cos(t).sum(1)
        b = np.prod(1 + np.cos(t), 1) / 4
        correct = np.eye(4) - np.outer(b, b * a) / (1 - np.cos(2 * low).sum() / 2)
        sweep = np.diag(1 - 0.8 * a / 4)
        if smoother == "red_black":
            for pair in ((0, 1), (2, 3)):
                m = np.cos(t[pair[0]]).sum() / 2
                red = np.array([[m + 1, -m - 1], [m - 1, 1 - m]]) / 2
                black = np.array([[m + 1, m + 1], [1 - m, 1 - m]]) / 2
                sweep[np.ix_(pair, pair)] = black @ red
        factors.append(abs(np.linalg.eigvals(sweep @ correct @ sweep)).max())
    return max(factors)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("smoother", "textbook"), [("jacobi", 0.36), ("red_black", 0.074)])
def test_two_grids_converge_as_local_fourier_analysis_says(smoother, textbook):
    options = numbers(smoother=smoother)
    predicted = two_grid_factor(smoother, 32)
    assert abs(predicted - textbook) < 2e-3

    @jax.jit
    def one(u):
        u = multigrid.cycle(u, jnp.zeros_like(u), 1.0, options, coarsest=16)
        u = u - u.mean()
        norm = jnp.linalg.norm(u)
        return u / norm, norm

    u, norms = jnp.asarray(np.random.default_rng(0).normal(size=(32, 32))), []
    for _ in range(120):
        u, norm = one(u)
        norms.append(float(norm))
    assert abs(np.exp(np.mean(np.log(norms[60:]))) - predicted) < 3e-3


@pytest.mark.usefixtures("x64")
@each("kind", multigrid.TRANSFERS)
def test_prolongation_is_four_times_the_adjoint_of_restriction_and_keeps_constants(kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8)), rng.normal(size=(4, 4))
    weights = jnp.array(multigrid.TRANSFERS[kind])
    down = lambda x: 4 * multigrid.restrict(x, weights)
    assert adjoint_error(down, lambda y: multigrid.prolong(y, weights), x, y) < 1e-15
    np.testing.assert_allclose(multigrid.prolong(jnp.ones((4, 4)), weights), 1, atol=1e-15)


@pytest.mark.usefixtures("x64")
def test_vertex_transfers_sit_on_every_other_pixel_and_cells_between():
    y = np.zeros((4, 4))
    y[1, 2] = 1
    along = lambda kind: np.asarray(
        multigrid.prolong(jnp.asarray(y), jnp.array(multigrid.TRANSFERS[kind]))
    )
    assert along("vertex")[2, 4] == 1
    assert along("vertex_off_by_one")[3, 5] == 1
    np.testing.assert_array_equal(along("cell")[2:4, 4:6], 0.75**2)
    np.testing.assert_array_equal(along("nearest")[2:4, 4:6], 1)


@pytest.mark.slow
def test_cycles_reach_the_factor_of_the_config_and_a_shift_of_a_pixel_does_not():
    @jax.jit
    def factors(traced):
        options = replace(multigrid.Options(), **traced)
        train = make_train(multigrid.make_task(options, None, 60), Length(60, 60))
        state, _ = train(jax.random.key(0))
        return train.evaluate(state, jax.random.key(0))[0]

    def factor(**options):
        given = traced_options([multigrid.Options(**options)])
        return float(factors({n: v[0] for n, v in given.items()})["convergence_factor_32"])

    assert abs(factor() - 0.116) < 0.01
    assert abs(factor(smoother="jacobi") - 0.36) < 0.02
    assert factor(prolongation="vertex_off_by_one") > 0.8


@pytest.mark.slow
def test_a_run_without_data_leaves_everything_behind_and_continues(tmp_path, capsys):
    arguments = ["run", str(CONFIG), "--quick", "--tensorboard", "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    summary = records.read_json(folder / "summary.json")
    assert summary["real"] == {}
    # Eight cycles are enough to tell a cycle that converges from one that does not.
    found = {
        name: v["final"]["convergence_factor_64"]["mean"] for name, v in summary["variants"].items()
    }
    assert found["vertex"] < 0.2 < found["mismatch"] < found["off_by_one"]
    assert "convergence_factor_64" in printed
    page = (folder / "report.html").read_text()
    assert "Samples along training" not in page
    assert (folder / "curves.png").exists()
    assert not (folder / "samples.png").exists()
    assert len(list((folder / "tensorboard").glob("vertex-*/events*"))) == 2  # seeds
    assert main(arguments) == 0
    assert "complete already" in capsys.readouterr().out
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    assert main([*arguments, "--dry-run", "--mesh=data=2"]) == 2
    assert "the task 'multigrid' has no batches" in capsys.readouterr().err


@pytest.mark.refuses
def test_a_claim_about_real_data_is_refused():
    claim = (
        '{claim="c",metric="convergence_factor_32",relation="vertex < real at final",source="s"}'
    )
    with pytest.raises(config.ConfigError, match="relation: compares with 'real' data, of which"):
        config.load(CONFIG, [f"expect=[{claim}]"])


@pytest.mark.refuses
def test_data_are_refused_where_none_are_used():
    for setting in ("data=shapes", "classifier_steps=3", "classifier_seed=1"):
        key = setting.partition("=")[0]
        with pytest.raises(config.ConfigError, match=f"{key}: task 'multigrid' takes no data"):
            config.load(CONFIG, [setting])
