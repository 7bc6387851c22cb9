"""Figures as objects: what is in them, without a display and without global state."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from selfdistill_fast import (
    RBF,
    DistillationPath,
    SelfDistilledKernelRidgeCV,
    distill,
    plotting,
    spectrum,
)


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X = np.linspace(0, 1, 12)[:, None]
    return spectrum(X, np.sin(6 * X[:, 0]) + 0.1 * rng.normal(size=12), RBF(20.0))


@pytest.fixture(scope="module")
def cases(fitted):
    return {
        "constant": distill(fitted, 0.1, 0.25, 4),
        "chosen": distill(fitted, 0.1, "optimal", 4),
    }


GRID = np.linspace(0, 1, 30)


def test_solutions_have_a_line_for_each_step_and_the_limit(cases):
    labels = {}
    for name, path in cases.items():
        ax = plotting.plot_solutions(path, GRID, [[0.0]], [1.0], truth=GRID)
        labels[name] = ax.get_legend_handles_labels()[1]
    steps = [f"τ = {t}" for t in (1, 2, 3, 4)]
    assert labels["constant"] == ["truth", *steps, "limit τ → ∞", "training data"]
    assert labels["chosen"] == ["truth", *steps, "training data"]


def test_the_smaller_bar_is_in_front_whichever_step_it_belongs_to(cases):
    path = cases["chosen"]
    ax = plotting.plot_shrinkage(path)
    for k in range(path.shrinkage.shape[1]):
        bars = [container[k] for container in ax.containers]
        heights = np.array([bar.get_height() for bar in bars])
        np.testing.assert_array_equal(heights, path.shrinkage[:, k])
        order = np.argsort([bar.get_zorder() for bar in bars])
        assert (np.diff(np.abs(heights[order])) <= 0).all()


def test_ratios_are_those_of_the_diagnostics(fitted, cases):
    from selfdistill_fast.diagnostics import shrinkage_ratios

    ax = plotting.plot_ratios(cases["constant"])
    drawn = np.array([line.get_ydata() for line in ax.lines if line.get_label().startswith("τ")])
    np.testing.assert_allclose(drawn, shrinkage_ratios(fitted.d, 0.1, 0.25, 4), rtol=1e-12)


@pytest.mark.parametrize("kind", ["figure_solutions", "figure_shrinkage", "figure_ratios"])
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_written(kind, suffix, cases, tmp_path):
    more = (GRID,) if kind == "figure_solutions" else ()
    figure = getattr(plotting, kind)(cases, *more)
    # an inset shows α where it varies
    assert len(figure.axes[1].child_axes) == (1 if more else 0)
    file = plotting.save_figure(figure, tmp_path / "new" / f"f.{suffix}")
    head = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert file.read_bytes().startswith(head)


@pytest.mark.parametrize("n_steps", [1, 2, 12])
def test_any_number_of_steps(fitted, n_steps, tmp_path):
    path = distill(fitted, 0.1, "optimal", n_steps)
    steps = [f"τ = {t}" for t in range(1, n_steps + 1)]
    solutions = plotting.figure_solutions({"x": path}, GRID)
    lines = {line.get_label(): line.get_ydata() for line in solutions.axes[0].lines}
    F = path.predict(GRID[:, None], step="all")
    assert [label for label in lines if label in steps] == steps
    for label, f in zip(steps, F, strict=True):
        np.testing.assert_array_equal(lines[label], f)

    shrinkage = plotting.figure_shrinkage({"x": path})
    (ax,) = shrinkage.axes
    heights = [[bar.get_height() for bar in container] for container in ax.containers]
    np.testing.assert_array_equal(heights, path.shrinkage)

    errors = np.arange(n_steps) + 1.0
    figure = plotting.figure_errors({"one": errors}, limits={"one": 3.0}, alphas=path.alphas)
    top, *bottom = figure.axes
    curve, ring, limit = top.lines
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(1, n_steps + 1))
    np.testing.assert_array_equal(curve.get_ydata(), errors)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (1, 1.0)
    assert set(limit.get_ydata()) == {3.0}
    assert len(bottom) == (n_steps > 1)  # the first step has no α
    for ax in bottom:
        np.testing.assert_array_equal(ax.lines[-1].get_ydata(), path.alphas[1:])
    for name, drawn in (("a", solutions), ("b", shrinkage), ("c", figure)):
        file = plotting.save_figure(drawn, tmp_path / f"{name}.png")
        assert file.read_bytes().startswith(b"\x89PNG")


def test_the_best_step_is_one_whose_error_is_known():
    """Joint weights without an α-sequence have a last step only: NaN for all others."""
    nan = float("nan")
    errors = {"known": [3.0, 1.0, 2.0], "some": [nan, 5.0, 4.0], "none": [nan, nan, nan]}
    lines = plotting.figure_errors(errors).axes[0].lines
    rings = [line.get_xydata().tolist() for line in lines if len(line.get_xdata()) == 1]
    assert rings == [[[2.0, 1.0]], [[3.0, 4.0]]]


def test_a_fault_in_the_limit_is_not_its_absence(fitted, cases, monkeypatch):
    def predict(self, X, step=None):
        if step == np.inf:
            raise ValueError("predictions overflow, say")
        return original(self, X, step)

    original = DistillationPath.predict
    monkeypatch.setattr(DistillationPath, "predict", predict)
    with pytest.raises(ValueError, match="overflow, say"):
        plotting.plot_solutions(cases["constant"], GRID)
    plotting.plot_solutions(cases["chosen"], GRID)


@pytest.mark.parametrize("gammas", [None, [1.0, 10.0, 100.0]])
def test_cross_validation_has_a_line_for_each_step_at_the_best_gamma(gammas):
    rng = np.random.default_rng(1)
    X = rng.uniform(size=(30, 1))
    y = np.sin(6 * X[:, 0]) + 0.3 * rng.normal(size=30)
    lams = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
    model = SelfDistilledKernelRidgeCV(lams=lams, gammas=gammas, max_steps=3).fit(X, y)
    ax = model.plot()
    assert ax.get_legend_handles_labels()[1] == ["τ = 1", "τ = 2", "τ = 3", "chosen"]
    chosen = ax.lines[-1]
    assert chosen.get_xdata()[0] == model.best_lam_
    line = ax.lines[model.best_step_ - 1]
    np.testing.assert_array_equal(line.get_xdata(), lams)
    assert line.get_ydata().min() == pytest.approx(-model.best_score_)


def test_what_cannot_be_drawn_is_said(fitted, tmp_path):
    with pytest.raises(ValueError, match="no cases"):
        plotting.figure_ratios({})
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf"):
        plotting.save_figure(plotting.figure_errors({"a": [1.0]}), tmp_path / "f.doc")
    several = spectrum(np.arange(3.0)[:, None], np.eye(3), RBF(1.0))
    with pytest.raises(ValueError, match="one target"):
        plotting.plot_solutions(distill(several, 1.0, 0.0, 2), GRID)


def test_no_global_state_and_a_clear_error_without_matplotlib(cases, monkeypatch):
    plotting.figure_ratios(cases)
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"selfdistill_fast\[cli\]"):
        plotting.figure_ratios(cases)
