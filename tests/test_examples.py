"""The example pages run and write what they say; so does the code in the README."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("name", "output", "written"),
    [
        ("plot_illustrative_example", "{}", ["figure2.png", "figure3.png", "figure4.png"]),
        ("plot_classification_one_hot", "{}/digits.png", ["digits.png"]),
        ("plot_constrained", "{}/constrained.png", ["constrained.png"]),
        ("plot_leave_one_out", "{}/leave_one_out.png", ["leave_one_out.png"]),
        ("plot_wide_network", "{}/wide_network.png", ["wide_network.png"]),
        ("plot_accuracy", "{}/accuracy.png", ["accuracy.png"]),
        ("plot_embeddings", "{}/embeddings.png", ["embeddings.png"]),
    ],
)
def test_example(name, output, written, tmp_path):
    if name == "plot_wide_network":
        pytest.importorskip("torch", reason="needs the extra torch")
    script = ROOT / "examples" / f"{name}.py"
    result = subprocess.run(
        [sys.executable, str(script), output.format(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for file in written:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    if name == "plot_illustrative_example":
        for loss in ("0.14915", "0.14903", "0.14834"):
            assert loss in result.stdout


def test_the_sweep_of_the_readme(tmp_path):
    """``selfdistill-fast sweep examples/sweep.toml``, on a machine without anything else."""
    shutil.copy(ROOT / "examples" / "sweep.toml", tmp_path)
    command = [sys.executable, "-m", "selfdistill_fast", "sweep", "sweep.toml"]
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "11 kernels" in result.stdout
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "sweep.zarr" / ".zmetadata").exists()


def test_every_example_is_tested():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {
        "plot_illustrative_example",
        "plot_classification_one_hot",
        "plot_constrained",
        "plot_embeddings",
        "plot_leave_one_out",
        "plot_wide_network",
        "plot_accuracy",
    }


def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    core = [block for block in blocks if "import torch" not in block and "from torch" not in block]
    assert len(core) >= 2
    assert len(blocks) > len(core)
    names: dict[str, object] = {}
    for block in core if importlib.util.find_spec("torch") is None else blocks:
        exec(block, names)
    assert (tmp_path / "path.npz").exists()


def test_readme_links_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
