"""Tasks and upsamplers of a user, in a module outside of the project, named `module:function`."""

import json

import numpy as np
import pytest
from cases import each
from folders import SUPERRESOLUTION

from experiments import config, records
from experiments.__main__ import main
from experiments.tasks import find

pytestmark = pytest.mark.usefixtures("promotion")

MODULE = """
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from experiments.training import Measures
from tconvjax import nnx as tnn


@dataclass(frozen=True)
class Options:
    size: int = 8


def measure(options, key):
    x = jax.random.normal(key, (options.size, options.size))
    return {"spread": x.std()}, {"panel": x}


def task():
    return Measures(
        options=Options,
        metrics=("spread",),
        curves={"spread": "spread of a field"},
        panels="A field",
        measure=measure,
    )


def painted(in_features, out_features, kernel_size, scale, *, padding_mode, rngs):
    options = {"padding_mode": padding_mode, "rngs": rngs}
    return tnn.ConvTranspose(in_features, out_features, kernel_size, scale, **options)


def forgetful():
    return Measures(options=Options, metrics=("spread", "width"), curves={}, measure=measure)


def number():
    return 3


def without_options():
    return Measures(options=3, metrics=(), curves={}, measure=measure)


def broken():
    raise KeyError("my key")


three = 3
"""
CONFIG = """
name = "own"
question = "How wide is a field?"
source = "me"
task = "own_module:task"
seeds = [0, 1]

[[variant]]
name = "small"

[[variant]]
name = "large"
size = 32

[[expect]]
claim = "a field is wide"
metric = "spread"
relation = "large > 0.1"
source = "me"
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A config of a task in a module beside it, in the current folder."""
    (tmp_path / "own_module.py").write_text(MODULE)
    (tmp_path / "own.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "own.toml"


def test_a_task_of_a_user_runs_is_complete_and_has_pages(file, tmp_path, capsys):
    resolved = config.load(file)
    assert find("own_module:task") is find("own_module:task")  # one program in a process
    assert config.load(file).digest == resolved.digest
    assert (
        config.load(file, ["variant=[{name='small',size=9}]", "expect=[]"]).digest
        != resolved.digest
    )
    command = ["run", str(file), "--out", str(tmp_path / "runs")]
    assert main(command) == 0
    folder = tmp_path / "runs" / f"own-{resolved.digest}"
    run = records.read_complete(folder)
    assert run.config["task"] == "own_module:task"
    assert run.config == config.describe(resolved)
    assert run.summary["claims"][0]["verdict"] == "supported"
    assert (folder / "measured.png").exists()
    assert (folder / "panels.png").exists()
    capsys.readouterr()
    assert main(command) == 0
    assert "complete already" in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    page = [str(tmp_path / "page.md")]
    assert main(["results", str(file), "--out", str(tmp_path / "runs"), "--page", *page]) == 0


@pytest.mark.refuses
def test_an_evaluation_without_a_metric_of_its_task_ends_the_run(file, tmp_path, capsys):
    command = ["run", str(file), "--set=task=own_module:forgetful", "--out", str(tmp_path / "runs")]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("variant small: its evaluation must return every metric of the task own")
    assert "it has no width. Return it" in said
    assert said.count("\n") == 1


def test_a_layer_of_the_library_is_an_upsampler():
    settings = ["variant=[{name='a',upsampler='tconvjax.nnx:ConvTranspose'}]", "expect=[]"]
    resolved = config.load(SUPERRESOLUTION, settings)
    assert resolved.variants[0].options.upsampler == "tconvjax.nnx:ConvTranspose"
    assert json.dumps(config.describe(resolved))


@pytest.mark.slow
def test_an_upsampler_of_a_user_trains_as_the_one_it_repeats(file, tmp_path):
    del file
    # A transposed convolution of this task has as many taps as its stride is wide times `kernel_size`.
    own, ours = "upsampler='own_module:painted',kernel_size=6", "upsampler='conv_transpose'"
    variants = f"{{name='own',{own}}},{{name='ours',{ours}}}"
    settings = {
        "name": "trained", "seeds": "[0,1]", "steps": 2, "chunk_steps": 1, "expect": "[]",
        "data": "{source='shapes',count=60,size=24}", "options.features": 4,
        "options.kernel_size": 3, "options.samples": 16, "options.batch_size": 2,
        "variant": f"[{variants}]",
    }  # fmt: skip
    flags = [f"--set={key}={value}" for key, value in settings.items()]
    command = ["run", str(SUPERRESOLUTION), *flags, "--out", str(tmp_path / "runs")]
    assert main(command) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    run = records.read_complete(folder)
    for metric, values in run.metrics["own"][2].items():
        np.testing.assert_allclose(values, run.metrics["ours"][2][metric], rtol=1e-5)
    (folder / "summary.json").unlink()
    assert main(command) == 0  # from its checkpoints
    assert records.read_complete(folder).metrics == run.metrics


TASKS = {
    "nowhere:task": "module 'nowhere' cannot be imported: ModuleNotFoundError: No module named",
    "own_module:tusk": "module 'own_module' has no 'tusk'; did you mean 'task'?",
    "own_module:three": "own_module:three must be a function that returns a task; got 3",
    "own_module:number": "own_module:number must return a Measures or a Trains of",
    "own_module:without_options": "options must be a frozen dataclass; got 3",
    "own_module:broken": "own_module:broken: KeyError: 'my key'",
    "own_module": "unknown name 'own_module'",
}


@each("name", TASKS)
@pytest.mark.refuses
def test_wrong_tasks_are_refused_in_one_line_before_any_work(name, file, tmp_path, capsys):
    out = tmp_path / "runs"
    claims = "expect=[]"
    assert main(["run", str(file), f"--set=task={name}", f"--set={claims}", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[0].startswith(f"{file}: task: ")
    assert TASKS[name] in said
    assert not out.exists()
    if ":" in name:
        assert said.count("\n") == 1


UPSAMPLERS = {
    "nowhere:up": "variant.a.upsampler: module 'nowhere' cannot be imported",
    "own_module:paint": "variant.a.upsampler: module 'own_module' has no 'paint'; did you mean 'painted'?",
    "own_module:number": "variant.a.upsampler: own_module:number must take (in_features, out_features, kernel_size, ",
    "own module:x": "upsampler: unknown value 'own module:x'",
}


@each("name", UPSAMPLERS)
@each("task", ("superresolution", "tones"))
@pytest.mark.refuses
def test_wrong_upsamplers_are_refused_before_any_work(name, task, file):
    del file
    settings = [f"variant=[{{name='a',upsampler='{name}'}}]", "expect=[]"]
    with pytest.raises(config.ConfigError) as caught:
        config.load(SUPERRESOLUTION.with_name(f"{task}.toml"), settings)
    (error,) = caught.value.errors
    assert UPSAMPLERS[name] in error


@pytest.mark.refuses
def test_a_run_whose_task_is_gone_is_named(tmp_path, capsys):
    folder = tmp_path / "runs" / "own-0"
    records.write_json(folder / "config.json", {"task": "gone:task"})
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{folder}: task: module 'gone' cannot be imported")
    assert said.count("\n") == 1
