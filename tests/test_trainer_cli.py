"""The commands train and train-figure: runs, their continuation, their figure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
from typer.testing import CliRunner  # noqa: E402

from selfdistill_fast.cli import app  # noqa: E402
from selfdistill_fast.plotting import figure_training  # noqa: E402
from selfdistill_fast.trainer import experiment  # noqa: E402

SMALL = ["--epochs", 2, "--n-train", 200, "--n-val", 100, "--batch-size", 50, "--device", "cpu"]


def run(*arguments, code=0):
    """Output of a command that must end with the given exit code and without a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two chains of two steps for two seeds, and what the command printed."""
    out = tmp_path_factory.mktemp("train") / "run"
    chains = ["--alpha", "optimal", "--alpha", 0.3, "--steps", 2, "--seeds", 2]
    return out, run("train", "--out", out, *chains, *SMALL)


def files(out):
    return {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}


def test_a_run_is_chains_and_seeds(trained):
    out, printed = trained
    assert "seed 1 alpha-optimal step 2 (α = 0)  epoch 2/2" in printed
    assert "train-figure" in printed
    names = files(out)
    for seed in (0, 1):
        for fit in ("first/step-1", "alpha-0.3/step-2", "alpha-optimal/step-2-student"):
            assert f"seed-{seed}/{fit}/fit.pt" in names
            assert (
                len(names[f"seed-{seed}/{fit}/log.csv"].read_text(encoding="utf-8").splitlines())
                == 3
            )
        best = json.loads(
            names[f"seed-{seed}/alpha-optimal/chain.json"].read_text(encoding="utf-8")
        )
        fixed = json.loads(names[f"seed-{seed}/alpha-0.3/chain.json"].read_text(encoding="utf-8"))
        assert (best["n_fits"], fixed["n_fits"]) == (3, 2)
        assert best["steps"][0] == fixed["steps"][0]  # the shared first fit
        assert fixed["steps"][1]["alpha"] == 0.3
    assert not [name for name in names if name.endswith(("checkpoint.pt", ".tmp"))]
    table = experiment.accuracies([out])
    assert list(table) == ["α = 0.3", "α̂"]
    assert table["α̂"]["val"].shape == (2, 2)
    assert f"{table['α̂']['val'][:, 1].mean():.4f}" in printed


def test_the_same_command_again_trains_nothing_and_more_can_be_added(trained):
    out, _ = trained
    before = {
        name: path.stat().st_mtime_ns for name, path in files(out).items() if "fit.pt" in name
    }
    again = run("train", "--out", out, "--alpha", 0.3, "--alpha", 0, "--steps", 2, *SMALL)
    assert "alpha-0 step 2  epoch 2/2" in again
    assert "alpha-0.3 step" not in again
    after = {name: path.stat().st_mtime_ns for name, path in files(out).items() if "fit.pt" in name}
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"seed-0/alpha-0/step-2/fit.pt"}


def test_another_configuration_is_refused(trained):
    out, _ = trained
    for change, message in (
        (["--epochs", 3], "epochs was 2, is now 3"),
        (["--model", "resnet18"], "model was cnn, is now resnet18"),
        (["--lam", 0.5, "--lr", 0.1], "lr was 0.001, is now 0.1; lam was 0.0001, is now 0.5"),
    ):
        printed = run("train", "--out", out, *SMALL, *change, code=1)
        assert message in " ".join(printed.split())


def test_the_figure(trained, tmp_path):
    out, _ = trained
    printed = run("train-figure", out)
    assert (out / "figure5.png").read_bytes().startswith(b"\x89PNG")
    assert "α̂" in printed
    assert run("train-figure", out, "--out", tmp_path / "f.svg", "--title", "digits")
    assert (tmp_path / "f.svg").read_bytes().startswith(b"<?xml")
    assert "no trained chain" in run("train-figure", tmp_path, code=1)
    assert "figure format" in run("train-figure", out, "--out", tmp_path / "f.txt", code=1)


def test_figure_5_is_mean_and_range_over_the_seeds():
    chains = {
        "α = 0": {"train": [[0.9, 0.8], [0.7, 0.6]], "val": [[0.8, 0.7], [0.6, np.nan]]},
        "α̂": {"train": [[0.9, 0.9], [0.7, 0.7]], "val": [[0.8, 0.8], [0.6, 0.5]]},
    }
    left, right = figure_training(chains).axes
    for ax, key in ((left, "train"), (right, "val")):
        for line, chain in zip(ax.lines, chains.values(), strict=True):
            np.testing.assert_allclose(line.get_ydata(), 100 * np.nanmean(chain[key], axis=0))
        for shade, chain in zip(ax.collections, chains.values(), strict=True):
            y = shade.get_paths()[0].vertices[:, 1]
            np.testing.assert_allclose(
                [y.min(), y.max()], [100 * np.nanmin(chain[key]), 100 * np.nanmax(chain[key])]
            )
    with pytest.raises(ValueError, match="no chains"):
        figure_training({})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--alpha", "joint"], 2, "joint has no meaning for networks"),
        (["--alpha", "high"], 2, "--alpha must be"),
        (["--seeds", "0"], 2, "--seeds must be a count"),
        (["--seeds", "1,x"], 2, "--seeds must be a count"),
        (["--steps", 0], 2, "--steps"),
        (["--model", "vgg"], 1, "unknown model 'vgg'; known: cnn"),
        (["--data", "nowhere"], 1, "no images in nowhere"),
        (["--n-train", 5000], 1, "5000 rows requested, but the data set has 1347"),
        (["--optimizer", "lion"], 1, "optimizer must be"),
        (["--lr", 1e30], 1, "error: the loss became nan at step 1, epoch"),
    ],
)
def test_errors_are_one_line(arguments, code, message, tmp_path):
    printed = run("train", "--out", tmp_path / "run", *SMALL, *arguments, code=code)
    assert message in " ".join(printed.split())


def test_without_torch_the_command_names_the_extra(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("selfdistill_fast.trainer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    printed = run("train", "--out", tmp_path / "run", *SMALL, code=1)
    assert "pip install 'selfdistill_fast[torch]'" in printed


def test_one_run_at_a_time(tmp_path):
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is training" in run("train", "--out", tmp_path, *SMALL, code=1)


def test_a_killed_command_continues_with_the_same_result(tmp_path):
    """SIGKILL when the second epoch of step 2 is logged; then the same command again."""
    arguments = ["--alpha", "0.3", "--steps", "2", *map(str, SMALL), "--epochs", "3"]

    def command(name):
        code = (
            "import sys, os, signal\n"
            "from selfdistill_fast import cli\n"
            "from selfdistill_fast.trainer.display import Display\n"
            "call = Display.__call__\n"
            "def kill(self, about):\n"
            "    call(self, about)\n"
            "    where = about['event'], about.get('step'), about.get('epoch')\n"
            "    if where == ('epoch', 2, 2) and os.environ.get('KILL'):\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "Display.__call__ = kill\n"
            f"sys.argv = ['selfdistill-fast', 'train', '--out', {str(tmp_path / name)!r}, "
            f"*{arguments!r}]\n"
            "cli.run()"
        )
        return [sys.executable, "-c", code]

    def outcome(name, **extra):
        return subprocess.run(
            command(name),
            capture_output=True,
            encoding="utf-8",
            check=False,
            env=os.environ | extra,
        )

    assert outcome("whole").returncode == 0  # a process of its own, too: the same threads
    assert outcome("killed", KILL="1").returncode == -signal.SIGKILL
    last = outcome("killed")
    assert last.returncode == 0, last.stderr
    assert "seed 0 alpha-0.3 step 2: continues after epoch 2" in last.stderr
    whole, killed = (
        torch.load(tmp_path / run / "seed-0/alpha-0.3/step-2/fit.pt", weights_only=True)
        for run in ("whole", "killed")
    )
    for name, value in whole["state"].items():
        assert torch.equal(value, killed["state"][name])
    assert torch.equal(whole["val_predictions"], killed["val_predictions"])
