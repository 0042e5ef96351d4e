"""Points of a sweep as jobs: through submitit's own processes, and through a real Slurm of this machine alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import until
from folders import CHECKERBOARD
from test_sweep import arguments, results

from experiments import cluster, records
from experiments.__main__ import main

submitit = pytest.importorskip("submitit")
SLURM = Path(__file__).parent / "slurm"


def told(capsys, *options):
    """Returns what a sweep says on stderr, and its status."""
    status = main(["sweep", str(CHECKERBOARD), "--quick", *options])
    return capsys.readouterr().err.strip(), status


@pytest.mark.refuses
def test_jobs_that_cannot_be_sent_are_refused(tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "runs")]
    monkeypatch.setenv("PATH", "")  # no Slurm here
    text, status = told(capsys, *out, "--cluster=slurm")
    assert (text.partition(";")[0], status) == (
        '--cluster slurm: Could not detect "srun", are you indeed on a slurm cluster?',
        2,
    )
    for setting, said in (
        ("timeout_min=soon", 'Parameter "timeout_min" expected type'),
        ("gpus=1", "Parameter 'gpus' need to be prefixed by an executor name."),
        ("tasks_per_node=2", "tasks_per_node must be 1, got 2"),
        ("slurm_gpu=1", "Unknown argument 'gpu' for executor 'slurm'"),
    ):
        text, status = told(capsys, *out, "--cluster=local", f"--cluster-set={setting}")
        assert text.startswith(f"--cluster local: {said}")
        assert "\n" not in text
        assert status == 2
    for options, said in (
        (["--cluster=local", "--cluster-set=a"], "command line: --cluster-set a: expected key.path=VALUE"),
        (["--cluster-set=a=1"], "--cluster-set: says what jobs of a cluster get; add --cluster slurm"),
        (["--cluster=local", "--jobs=2"], "--jobs: --cluster local starts all jobs at once"),
        (["--cluster=local", "--mesh=seeds=5"], "--mesh: seeds=5 must divide the runs"),
        (["--cluster=local", "--distributed=auto"], "--distributed: the jobs of a cluster join by themselves"),
    ):  # fmt: skip
        text, status = told(capsys, *out, *options)
        assert text.startswith(said)
        assert status == 2
    assert not list((tmp_path / "runs").glob("*/config.json"))


@pytest.mark.slow
def test_a_job_that_is_displaced_calls_again_and_a_lost_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "ASK", 0.5)

    def work(number):  # in here, so that jobs get it whole
        calls = tmp_path / str(number)
        again = calls.exists()
        with calls.open("a") as file:
            file.write("called\n")
        if number in (1, 4) and not again:
            try:
                time.sleep(300)
            except SystemExit:
                if number == 1:
                    raise
                return "an error of the user's code"  # as those who catch everything say
        if number == 2:
            os._exit(3)
        if number == 3:
            raise RuntimeError("no good")
        return number

    executor = cluster.executor_of("local", tmp_path / "jobs", {}, None)
    jobs = cluster.send(executor, work, range(5))
    found = {}
    for i, result in cluster.results("local", jobs):
        found[i] = result
        if len(found) == 3:  # all but those that wait
            for waiting in (1, 4):
                until((tmp_path / str(waiting)).exists)
                pid = jobs[waiting].job_id
                children = Path(f"/proc/{pid}/task/{pid}/children")
                os.kill(int(children.read_text().split()[0]), signal.SIGUSR2)
    assert (found[0], found[1], found[4]) == (0, 1, 4)
    for waiting in (1, 4):
        assert (tmp_path / str(waiting)).read_text() == "called\n" * 2
    for i in (2, 3):
        log = jobs[i].paths.stderr
        assert found[i] == cluster.Lost(f"job {jobs[i].job_id} ended without a result; see {log}")
    assert "no good" in jobs[3].paths.stderr.read_text()


# Sweeps.


def jobs_of(out, *options):
    """Returns the command of a sweep of two points as jobs, long enough to be disturbed."""
    start = [sys.executable, "-m", "experiments"]
    return [*start, *arguments(out, "--set=steps=40", *options, rates="1e-3,2e-3")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep through processes of submitit."""
    out = tmp_path_factory.mktemp("local")
    done = subprocess.run(
        jobs_of(out, "--cluster=local"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_a_sweep_goes_through_jobs_which_say_how_they_were_asked_for(undisturbed):
    out, told = undisturbed
    summary, _ = results(out)
    assert [point["status"] for point in summary["points"]] == ["complete"] * 2
    (folder,) = out.glob("*-sweep-*")
    assert str(folder / "jobs") in "".join(told.split())
    for point in summary["points"]:
        environment = records.read_json(out / point["folder"] / "environment.json")
        assert "experiments sweep" in environment["command"]
        assert environment["command"].endswith("--cluster=local")
        assert any("report" in log.read_text() for log in (folder / "jobs").glob("*.out"))


# A real Slurm.


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which commands find a Slurm that has just been started."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; Debian's slurm-wlm and munge have them")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        done = subprocess.run(
            [SLURM / "start", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"Slurm does not start here: {done.stderr}")
        yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([SLURM / "stop", folder], capture_output=True, check=False)


def queue(slurm):
    """Returns the states of the jobs that are not over."""
    asked = ["squeue", "--noheader", "--array", "--format=%i %T"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True, env=slurm).stdout
    return dict(line.split() for line in lines.splitlines())


@pytest.mark.slow
def test_a_real_slurm_runs_a_sweep(slurm, undisturbed, tmp_path):
    """One job is displaced, queued again and goes on; another dies, and the same command sends it again."""
    sent = jobs_of(tmp_path, "--cluster=slurm", "--jobs=2", "--cluster-set=timeout_min=20")
    slow = slurm | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # compiles when it is disturbed
    process = subprocess.Popen(
        sent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=slow
    )
    # One may be past its first checkpoint, which is removed in time, when the other begins.
    until(lambda: len({p.parent for p in tmp_path.glob("*/checkpoints/up/*")}) == 2, process)
    displaced, killed = sorted(queue(slurm))
    for job in (["--signal=USR2", displaced], ["--signal=KILL", "--full", killed]):
        subprocess.run(["scancel", *job], check=True, env=slurm)
    until(lambda: queue(slurm).get(displaced) == "PENDING", process)
    soon = ["scontrol", "update", f"JobId={displaced}", "StartTime=now"]  # not in two minutes
    subprocess.run(soon, check=True, env=slurm)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert f"job {killed} ended without a result" in " ".join(output.split())
    again = subprocess.run(sent, capture_output=True, text=True, env=slurm, check=False)
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == results(undisturbed[0])
