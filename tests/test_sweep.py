"""Sweeps: every cell is the model that it names, and a store survives what happens to it."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tolerance
import xarray as xr
import zarr
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    SelfDistilledKernelRidgeCV,
    SweepResult,
    distill,
    gram,
    leave_one_out,
    spectrum,
    sweep,
)
from selfdistill_fast._chain.selection import held_out
from selfdistill_fast._solvers.planning import choose
from selfdistill_fast._sweep import grid as grid_module
from selfdistill_fast._sweep import score as score_module
from selfdistill_fast._sweep import store as store_module
from selfdistill_fast._sweep.store import Store
from selfdistill_fast.plotting import figure_sweep

KERNELS = [RBF(0.3), RBF(1.0), Laplacian(0.5), Matern(1.0, 1.5)]
LAMS = [0.05, 0.3, 2.0]

# the joint optimum says when its last steps gain little; here that is no news
pytestmark = pytest.mark.filterwarnings("ignore:joint weights:RuntimeWarning")


def draw(rng, n=40, m=25, p=None):
    def f(X):
        y = np.sin(2 * X[:, 0]) + X[:, 1]
        return y if p is None else y[:, None] * np.linspace(1, 2, p)

    X, X_val = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    y, y_val = f(X), f(X_val)
    return X, y + 0.4 * rng.normal(size=y.shape), X_val, y_val + 0.4 * rng.normal(size=y_val.shape)


@pytest.fixture
def problem(rng):
    return draw(rng)


def go(problem, store=None, **options):
    X, y, _, _ = problem
    options = {
        "kernels": KERNELS,
        "lams": LAMS,
        "alphas": [0, 0.25, "optimal", "joint"],
        "n_steps": 3,
        "progress": False,
    } | options
    return sweep(X, y, store=store, **options)


@pytest.fixture
def factorised(monkeypatch):
    """The kernels that were factorised, in order."""
    calls = []

    def counted(X, y, kernel, **options):
        calls.append(kernel)
        return spectrum(X, y, kernel, **options)

    monkeypatch.setattr(score_module, "spectrum", counted)
    return calls


def same(a, b):
    """Bit for bit, labels and attributes included."""
    xr.testing.assert_identical(a.dataset, b.dataset)
    for name, variable in a.dataset.variables.items():
        assert variable.values.tobytes() == b.dataset[name].values.tobytes(), name
    assert a.kernels == b.kernels
    return True


# ---------------------------------------------------------------- the numbers
@pytest.mark.parametrize("p", [None, 3])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_cell_is_the_model_that_it_names(p, intercept, weighted, rng):
    X, y, X_val, y_val = draw(rng, p=p)
    w = rng.uniform(0.2, 2, len(X)) if weighted else None
    w_val = rng.uniform(0.2, 2, len(X_val)) if weighted else None
    if weighted:
        w[:3] = 0
    T, alphas = 4, [0, 0.25, 1.4, [0.2, -0.3, 0.7], "optimal", "joint"]
    held = {"X_val": X_val, "y_val": y_val, "sample_weight_val": w_val}
    options = {"sample_weight": w, "fit_intercept": intercept}
    kernels, lams = KERNELS[1:3], LAMS[:2]
    result = sweep(
        X, y, kernels=kernels, lams=lams, alphas=alphas, n_steps=T, leave_one_out=True,
        progress=False, **held, **options,
    )  # fmt: skip
    data = result.dataset
    assert result.scores == ["validation", "leave-one-out"]
    assert data.alpha.values.tolist() == ["0", "0.25", "1.4", "0.2, -0.3, 0.7", "optimal", "joint"]
    assert data.mse_val.shape == data.mse_loo.shape == (2, 2, 6, T, p or 1)
    flat_val, flat = y_val.reshape(len(y_val), -1), y.reshape(len(y), -1)
    compared = 0
    for (i, kernel), (j, lam) in [(a, b) for a in enumerate(kernels) for b in enumerate(lams)]:
        s = spectrum(X, y, kernel, solver="eigh", **options)
        for (a, alpha), step in [(e, t) for e in enumerate(alphas) for t in range(1, T + 1)]:
            cell = data.isel(kernel=i, lam=j, alpha=a, step=step - 1)
            chosen = alpha[: step - 1] if isinstance(alpha, list) else alpha
            path = distill(s, lam, chosen, step, **held)
            errors = np.square(path.predict(X_val).reshape(flat_val.shape) - flat_val)
            expected = np.average(errors, axis=0, weights=w_val)
            assert_close(cell.mse_val.values, expected, 1e-8)
            if alpha == "joint":
                predicted = cell.joint_weights.values[:step]
                assert_close(predicted, path.weights, 1e-6)
            elif step > 1:
                assert_close(cell.alphas.values, path.alphas[-1], 1e-8, scale=1.0)
            if np.isnan(path.alphas[1:]).any():
                continue
            G = leave_one_out(s, lam, path.alphas, step)[-1].reshape(flat.shape)
            expected = np.average(np.square(G - flat), axis=0, weights=w)
            assert_close(cell.mse_loo.values, expected, 1e-7)
            compared += 1
    assert compared > 80


def test_a_sweep_is_what_the_cross_validated_estimator_finds(problem):
    X, y, _, _ = problem
    gammas = [0.1, 0.5, 2.0]
    model = SelfDistilledKernelRidgeCV(lams=LAMS, gammas=gammas, alpha="optimal", max_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the best γ lies on the edge
        model.fit(X, y)
    result = go(problem, kernels=[RBF(g) for g in gammas], alphas="optimal")
    assert np.array_equal(result.dataset.mse_loo.values.ravel(), model.cv_results_["mse"])
    best = result.best()
    assert (best["lam"], best["step"]) == (model.best_lam_, model.best_step_)
    assert best["kernel"] == RBF(model.best_gamma_)
    assert best["mse"] == -model.best_score_
    np.testing.assert_array_equal(best["weights"], model.weights_)


def test_best_is_a_chain_that_has_its_error(rng):
    X, y, X_val, y_val = draw(rng, p=2)
    y_val = y_val + np.array([0.0, 3.0])  # so that the targets disagree
    result = go((X, y, None, None), X_val=X_val, y_val=y_val, leave_one_out=True)
    for score, target in [(None, None), (None, 0), (None, 1), ("leave-one-out", None)]:
        best = result.best(score, target=target)
        s = spectrum(X, y, best["kernel"])
        if np.isnan(best["alphas"][1:]).any():
            continue
        path = distill(s, best["lam"], best["alphas"], best["step"])
        if score == "leave-one-out":
            errors = leave_one_out(s, best["lam"], best["alphas"], best["step"])[-1] - y
        else:
            errors = path.predict(X_val) - y_val
        mse = np.square(errors).mean(0)
        assert_close(best["mse"], mse.mean() if target is None else mse[target], 1e-7)
        assert_close(best["weights"], path.weights, 1e-7)
        values = result.dataset["mse_loo" if score else "mse_val"]
        values = values.mean("target") if target is None else values.sel(target=target)
        assert best["mse"] == values.min().item()


def test_alphas_for_each_target(rng):
    X, y, _, _ = draw(rng, p=2)
    result = go((X, y, None, None), alphas=[0.5, "optimal", "joint"], per_target=True)
    assert result.dataset.alphas.dims == ("kernel", "lam", "alpha", "step", "target")
    single = [go((X, y[:, j], None, None), alphas=[0.5, "optimal", "joint"]) for j in range(2)]
    for j in range(2):
        ours = result.dataset.isel(target=j)
        theirs = single[j].dataset.isel(target=0)
        assert_close(ours.mse_loo.values, theirs.mse_loo.values, 1e-9)
        chosen = ours.alphas.sel(alpha="optimal").values[..., 1:]
        assert_close(chosen, theirs.alphas.sel(alpha="optimal").values[..., 1:], 1e-7)
    best = result.best()
    assert best["weights"].shape == (best["step"], 2)


@pytest.mark.parametrize("solver", ["auto", "tridiagonal", "krylov"])
def test_solvers_without_leave_one_out(solver, problem):
    _, _, X_val, y_val = problem
    held = {"X_val": X_val, "y_val": y_val, "alphas": [0.25, "optimal"], "solver": solver}
    result = go(problem, **held)
    expected = go(problem, **held | {"solver": "eigh"})
    assert_close(result.dataset.mse_val.values, expected.dataset.mse_val.values, 1e-6)
    used = "tridiagonal" if solver == "auto" else solver
    assert result.dataset.solver.values.tolist() == [used] * 4
    if solver != "auto":
        with pytest.raises(ValueError, match="leave-one-out"):
            go(problem, solver=solver)


def test_what_auto_chose_is_kept(problem, tmp_path, monkeypatch):
    """The choice follows from clocks and free memory; a restart must not choose again."""
    _, _, X_val, y_val = problem
    options = {"X_val": X_val, "y_val": y_val, "alphas": [0.25, "optimal"]}
    first = go(problem, tmp_path / "store", **options)
    assert set(first.dataset.solver.values) == {"tridiagonal"}

    def other(*args, **options):
        plan = choose(*args, **options)
        return dataclasses.replace(plan, solver="eigh")

    monkeypatch.setattr(grid_module, "choose", other)
    assert set(go(problem, **options).dataset.solver.values) == {"eigh"}
    shutil.rmtree(tmp_path / "store" / "kernel-0002")
    assert same(first, go(problem, tmp_path / "store", **options))


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "nystrom"])
def test_solvers(solver, problem, factorised):
    options = {"solver_options": {"n_landmarks": 40}} if solver == "nystrom" else {}
    result = go(problem, solver=solver, alphas=[0.25, "optimal"], **options)
    expected = go(problem, alphas=[0.25, "optimal"])
    assert_close(result.dataset.mse_loo.values, expected.dataset.mse_loo.values, 1e-6)
    assert result.dataset.solver.values.tolist() == [solver] * 4
    # one factorisation serves every λ, but for "cholesky"
    assert len(factorised) - 4 == (12 if solver == "cholesky" else 4)


def test_memory_is_bounded_by_blocks_of_lams(problem, monkeypatch, factorised):
    """One λ at a time: as many factorisations, the same answer."""
    held = {"X_val": problem[2], "y_val": problem[3], "leave_one_out": True}
    expected = go(problem, **held)
    shapes = []

    def columns(fitted, lam, *args, **options):
        found = held_out(fitted, lam, *args, **options)
        shapes.append(found.F.shape[:2])
        return found

    monkeypatch.setattr(score_module, "held_out", columns)
    monkeypatch.setattr(score_module, "_BLOCK_BYTES", 1)
    result = go(problem, **held)
    assert shapes == [(1, 3)] * 4 * 3 * 2
    assert len(factorised) == 8
    for name in ("mse_val", "mse_loo", "alphas", "joint_weights"):
        finite = np.nan_to_num(expected.dataset[name].values)
        assert_close(np.nan_to_num(result.dataset[name].values), finite, 1e-7)


@pytest.mark.parametrize("n_steps", [1, 3, 6])
def test_one_lam_takes_the_cheap_solver_where_it_can(n_steps, problem):
    result = go(problem, lams=0.3, n_steps=n_steps, alphas=[0.1, "optimal"])
    expected = go(problem, lams=0.3, n_steps=n_steps, alphas=[0.1, "optimal"], solver="eigh")
    assert_close(result.dataset.mse_loo.values, expected.dataset.mse_loo.values, 1e-8)
    assert set(result.dataset.solver.values) == {"eigh" if n_steps > 4 else "cholesky"}


def test_a_precomputed_kernel(problem):
    X, y, X_val, y_val = problem
    expected = go(problem, kernels=RBF(0.4), X_val=X_val, y_val=y_val, leave_one_out=True)
    K, K_val = gram(X, kernel=RBF(0.4)), gram(X_val, X, kernel=RBF(0.4))
    result = go(
        (K, y, None, None), kernels="precomputed", X_val=K_val, y_val=y_val, leave_one_out=True
    )
    for name in ("mse_val", "mse_loo"):
        assert_close(result.dataset[name].values, expected.dataset[name].values, 1e-8)


def test_float32_and_backends(problem):
    X, y, _, _ = problem
    rows = X.astype(np.float32)  # the same numbers in both precisions
    problem = (rows.astype(np.float64), y, None, None)
    expected = go(problem).dataset.mse_loo.values
    assert_close(go(problem, backend="reference").dataset.mse_loo.values, expected, 1e-8)
    single = go((rows, y, None, None)).dataset.mse_loo.values
    np.testing.assert_allclose(single, expected, rtol=10 * tolerance.floor(np.float32))
    # it was computed in float32
    assert np.abs(single / expected - 1.0).max() > 10 * tolerance.floor(np.float64)


def test_to_dataframe_has_a_row_for_every_cell(rng):
    X, y, _, _ = draw(rng, p=2)
    result = go((X, y, None, None))
    frame = result.to_dataframe()
    assert len(frame) == 4 * 3 * 4 * 3 * 2
    row = frame.iloc[17]
    cell = result.dataset.sel(
        kernel=row.kernel, lam=row.lam, alpha=row.alpha, step=row.step, target=row.target
    )
    assert row.mse_loo == cell.mse_loo.item()
    assert frame[frame.kernel == "RBF(gamma=0.3)"].gamma.unique().tolist() == [0.3]
    assert frame[frame.kernel == repr(Matern(1.0, 1.5))].gamma.isna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": []}, "kernels is empty"),
        ({"kernels": [RBF(1.0), RBF(1)]}, "more than once"),
        ({"kernels": ["precomputed", RBF(1.0)]}, "give no other kernel with it"),
        ({"lams": []}, "lam is empty"),
        ({"lams": [0.1, 0.1]}, "lams holds 0.1 more than once"),
        ({"lams": [0.1, -1]}, "> 0"),
        ({"alphas": []}, "alphas is empty"),
        ({"alphas": [0.5, "best"]}, "'optimal' and 'joint'"),
        ({"alphas": [0.5, 0.5]}, "alphas holds 0.5 more than once"),
        ({"alphas": [[0.5]]}, "expected 2 alphas"),
        ({"n_steps": 0}, "n_steps"),
        ({"leave_one_out": False}, "nothing to score on"),
        ({"X_val": np.ones((3, 2))}, "go together"),
        ({"X_val": np.ones((3, 3)), "y_val": np.ones(3)}, "X_val has 3 features"),
        ({"X_val": np.ones((3, 2)), "y_val": np.ones((3, 2))}, "y_val has shape"),
        ({"sample_weight_val": np.ones(3)}, "which are missing"),
        ({"solver": "magic"}, "unknown solver"),
        ({"random_state": -1}, "random_state"),
    ],
)
def test_bad_input_is_refused(options, message, problem):
    with pytest.raises(ValueError, match=message):
        go(problem, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_state": np.random.default_rng()}, "must be an integer"),
        ({"client": "tcp://127.0.0.1:8786"}, "dask.distributed.Client"),
        ({"solver_options": {"speed": 11}}, "no option speed"),
        ({"kernels": [RBF]}, "write RBF"),
    ],
)
def test_what_is_of_the_wrong_type_is_refused(options, message, problem):
    with pytest.raises(TypeError, match=message):
        go(problem, **options)


@pytest.mark.parametrize("module", ["xarray", "zarr", "tqdm"])
def test_a_missing_extra_is_named(module, problem, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}.*selfdistill_fast\[sweep\]"):
        go(problem, tmp_path / "store", progress=True)


# ----------------------------------------------------------------- the store
def test_a_store_gives_the_same_bits_and_is_not_computed_again(problem, tmp_path, factorised):
    undisturbed = go(problem)
    stored = go(problem, tmp_path / "store")
    assert len(factorised) == 8
    again = go(problem, tmp_path / "store")
    assert len(factorised) == 8
    assert same(undisturbed, stored)
    assert same(undisturbed, again)
    assert same(undisturbed, SweepResult.load(tmp_path / "store"))


def test_the_store_is_plain_zarr(problem, tmp_path):
    result = go(problem, tmp_path / "store")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_consolidated(str(tmp_path / "store"), mode="r")
        assert sorted(root.group_keys()) == [f"kernel-{i:04d}" for i in range(4)]
        one = xr.open_zarr(tmp_path / "store", group="kernel-0002").load()
    xr.testing.assert_equal(one, result.dataset.isel(kernel=[2]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernels": KERNELS[:3]}, "kernels"),
        ({"lams": [0.05, 0.3, 2.5]}, r"lams was \[0.05, 0.3, 2.0\], is now \[0.05, 0.3, 2.5\]"),
        ({"alphas": [0, 0.25, "optimal"]}, "alphas"),
        ({"n_steps": 4}, "n_steps was 3, is now 4"),
        ({"solver": "eigh"}, "solver was auto, is now eigh"),
        ({"solver": "nystrom", "solver_options": {"n_landmarks": 5}}, "solver_options.n_landmarks"),
        ({"fit_intercept": True}, "fit_intercept"),
        ({"clip": True}, "clip"),
        ({"per_target": True}, "per_target"),
        ({"backend": "reference"}, "backend was cpu, is now reference"),
        ({"random_state": 7}, "random_state"),
        ({"sample_weight": np.linspace(1, 2, 40)}, "data.sample_weight was null"),
        ({"X_val": np.ones((2, 2)), "y_val": np.ones(2)}, "data.X_val"),
    ],
)
def test_a_store_made_for_another_sweep_is_refused(change, named, problem, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", lambda *_: None)  # its manifest is what matters here
        patch.setattr(Store, "consolidate", lambda *_: None)
        go(problem, tmp_path / "store")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=named):
        go(problem, tmp_path / "store", **change)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert before == after


NEXT = np.nextafter(0.25, 1)  # 0.25 to 15 digits


@pytest.mark.parametrize(
    ("alphas", "others"),
    [
        ([0.25], [NEXT]),
        ([1 / 3], [1 / 3 + 1e-13]),
        ([[0.5, 0.25]], [[0.5, NEXT]]),
        ([np.full((2, 3), 0.25)], [np.where(np.eye(2, 3) > 0, NEXT, 0.25)]),
    ],
)
def test_a_store_knows_every_digit_of_its_alphas(alphas, others, rng, tmp_path):
    data, grid = draw(rng, p=3), {"kernels": [RBF(0.3)], "lams": [0.3]}
    go(data, tmp_path / "store", alphas=alphas, **grid)
    with pytest.raises(ValueError, match=r"alphas was .* is now") as refusal:
        go(data, tmp_path / "store", alphas=others, **grid)
    before, now = str(refusal.value).split("alphas was ")[1].split(", is now ")
    assert before != now.split(". Give this sweep")[0]
    both = go(data, alphas=[*alphas, *others], **grid)  # and they are two entries of a grid
    assert len(set(both.dataset.alpha.values.tolist())) == 2


def test_labels_are_short_where_twelve_digits_say_it_all(problem):
    entries = [0.1, 1 / 3, 0, 1e-5, -2.5, [0.1, 2e20]]
    found = go(problem, alphas=entries, kernels=[RBF(0.3)]).dataset.alpha.values.tolist()
    assert found == ["0.1", "0.3333333333333333", "0", "1e-05", "-2.5", "0.1, 2e+20"]


def test_a_difference_far_down_a_long_list_is_shown(problem, tmp_path):
    grid = {"kernels": [RBF(0.3)], "alphas": [0.0], "n_steps": 1}
    lams = np.geomspace(1e-3, 1e3, 60)
    go(problem, tmp_path / "store", lams=lams, **grid)
    other = lams.copy()
    other[-2] = 123.0
    with pytest.raises(ValueError, match=r"lams was (.*), is now (.*)\. Give") as refusal:
        go(problem, tmp_path / "store", lams=other, **grid)
    assert repr(float(lams[-2])) in str(refusal.value)
    assert "123.0" in str(refusal.value)


def test_a_store_is_discarded_only_when_asked(problem, tmp_path, factorised):
    first = go(problem, tmp_path / "store")
    with pytest.raises(ValueError, match="overwrite=True"):
        go(problem, tmp_path / "store", n_steps=2)
    assert same(first, SweepResult.load(tmp_path / "store"))
    other = go(problem, tmp_path / "store", n_steps=2, kernels=KERNELS[:3], overwrite=True)
    assert same(other, go(problem, n_steps=2, kernels=KERNELS[:3]))
    assert same(other, SweepResult.load(tmp_path / "store"))
    assert not (tmp_path / "store" / "kernel-0003").exists()
    before = len(factorised)
    assert same(
        other, go(problem, tmp_path / "store", n_steps=2, kernels=KERNELS[:3], overwrite=True)
    )
    assert len(factorised) == before + 3


@pytest.mark.parametrize("which", ["X", "y", "dtype", "version"])
def test_a_store_made_for_other_data_is_refused(which, problem, tmp_path, monkeypatch):
    X, y, _, _ = problem
    go(problem, tmp_path / "store")
    X, y = X.copy(), y.copy()
    if which == "X":
        X[3, 1] = np.nextafter(X[3, 1], 9)  # the last bit counts
    elif which == "y":
        y[5] += 1e-9
    elif which == "dtype":
        X, which = X.astype(np.float32), "data.X was float64 .* is now float32"
    else:
        monkeypatch.setattr(grid_module, "version", lambda _: "9.9")
        which = "version was .*, is now 9.9"
    with pytest.raises(ValueError, match=which):
        go((X, y, None, None), tmp_path / "store")


def test_nystrom_goes_on_with_the_seed_that_it_drew(problem, tmp_path, factorised):
    options = {"solver": "nystrom", "solver_options": {"n_landmarks": 8}}
    first = go(problem, tmp_path / "store", **options)
    for name in ("kernel-0001", "kernel-0003"):
        shutil.rmtree(tmp_path / "store" / name)
    assert same(first, go(problem, tmp_path / "store", **options))
    assert len(factorised) == 6
    manifest = json.loads(
        (tmp_path / "store" / ".sweep" / "manifest.json").read_text(encoding="utf-8")
    )
    assert same(first, go(problem, random_state=manifest["random_state"], **options))


def test_a_function_as_kernel_needs_no_store(problem, tmp_path):
    def kernel(X, Z):
        return X @ Z.T

    result = go(problem, kernels=[kernel, RBF(1.0)])
    expected = go(problem, kernels=[Linear()])
    assert_close(result.dataset.mse_loo.values[:1], expected.dataset.mse_loo.values, 1e-8)
    with pytest.raises(ValueError, match="function cannot be saved"):
        go(problem, tmp_path / "store", kernels=[kernel])


# ------------------------------------------------------- what happens to a store
@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "missing", "metadata", "marker", "extra"]
)
def test_a_damaged_group_is_noticed_and_computed_again(damage, problem, tmp_path, factorised):
    store = tmp_path / "store"
    first = go(problem, store)
    chunk = next(file for file in (store / "kernel-0002" / "mse_loo").glob("0*"))
    if damage == "truncated":
        os.truncate(chunk, chunk.stat().st_size // 2)
    elif damage == "flipped":
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    elif damage == "missing":
        chunk.unlink()  # zarr would read fill values
    elif damage == "metadata":
        (store / "kernel-0002" / ".zmetadata").write_text("{", encoding="utf-8")
    elif damage == "marker":
        (store / ".sweep" / "done" / "kernel-0002.json").write_text('{"files": ', encoding="utf-8")
    elif damage == "extra":
        (store / "kernel-0002" / "mse_loo" / "0.0.0.0.1").write_bytes(b"x")
    if damage != "marker":
        with pytest.raises(ValueError, match=r"kernel-0002 .* is damaged"):
            SweepResult.load(store)
        with pytest.warns(RuntimeWarning, match=r"kernel-0002 .* is recomputed"):
            again = go(problem, store)
    else:
        again = go(problem, store)
    assert factorised[4:] == KERNELS[2:3]
    assert same(first, again)
    assert same(first, SweepResult.load(store))


@pytest.mark.parametrize("error", [MemoryError("1 EiB"), PermissionError(13, "not yours")])
@pytest.mark.parametrize("at", ["group", "marker"])
def test_what_cannot_be_read_now_is_kept(error, at, problem, tmp_path, monkeypatch, factorised):
    """It was called damaged, and removed."""
    store = tmp_path / "store"
    first = go(problem, store)
    read_text = Path.read_text

    def fail(path, *args, **options):
        if at == "group" or path.name == "kernel-0002.json":
            raise error
        return read_text(path, *args, **options)

    place = (store_module, "read_group") if at == "group" else (Path, "read_text")
    with monkeypatch.context() as patch:
        patch.setattr(*place, fail)
        with pytest.raises(type(error)):
            go(problem, store)
    assert same(first, go(problem, store))
    assert len(factorised) == len(KERNELS)


def test_leftovers_are_removed_and_never_read(problem, tmp_path, factorised):
    store = tmp_path / "store"
    first = go(problem, store)
    # killed after the rename, before the marker; while writing; by an older manifest
    (store / ".sweep" / "done" / "kernel-0001.json").unlink()
    chunk = next((store / "kernel-0001" / "mse_loo").glob("0*"))
    chunk.write_bytes(b"nonsense")
    aside = store / ".sweep" / "writing" / "kernel-0003"
    shutil.copytree(store / "kernel-0003", aside)
    shutil.copytree(store / "kernel-0003", store / "kernel-0017")
    assert same(first, go(problem, store))
    assert factorised[4:] == KERNELS[1:2]
    assert not aside.exists()
    assert not (store / "kernel-0017").exists()


def test_a_strange_directory_is_left_alone(problem, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not a store of a sweep .*thesis\.tex"):
        go(problem, tmp_path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        go(problem, tmp_path / "thesis.tex")
    with pytest.raises(FileNotFoundError, match="not a store"):
        SweepResult.load(tmp_path)


def test_one_process_at_a_time(problem, tmp_path):
    pytest.importorskip("fcntl")
    store = tmp_path / "store"
    held = Store(store, {}, [])
    with pytest.raises(BlockingIOError, match="another process is using the store"):
        go(problem, store)
    held.close()
    shutil.rmtree(store)
    first = go(problem, store)
    assert same(first, go(problem, store))  # nothing is held after the end


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("verb", ["to_zarr", "rename", "replace"])
def test_a_failing_disk_is_said_and_survived(
    verb, at, number, problem, tmp_path, monkeypatch, factorised
):
    """Whichever write fails: a clear error, finished kernels kept, and the store goes on."""
    store = tmp_path / "store"
    expected = go(problem)
    target = xr.Dataset if verb == "to_zarr" else os
    real, calls = getattr(target, verb), []

    def failing(*args, **options):
        mine = verb == "to_zarr" or str(store) in str(args[0])
        calls.append(mine)
        if mine and sum(calls) > at:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    monkeypatch.setattr(target, verb, failing)
    with pytest.raises(OSError, match="run the same sweep again") as caught:
        go(problem, store)
    assert caught.value.errno == number
    assert str(store) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    monkeypatch.setattr(target, verb, real)
    done = len(list((store / ".sweep" / "done").glob("*.json")))
    if done:
        assert f"it holds {done} of 4 kernels" in str(caught.value)
    before = len(factorised)
    assert same(expected, go(problem, store))
    assert len(factorised) - before == 4 - done


def in_a_mount(script, folder, options):
    """Run Python code on a file system of its own, mounted on ``folder``; skip where that fails."""
    command = f"mount -t tmpfs -o {options} tmpfs {folder} && exec {sys.executable} -"
    try:
        subprocess.run(
            ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o {options} tmpfs {folder}"],
            check=True, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a file system here: {error}")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        input=textwrap.dedent(script), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


SWEEP = """
import os, sys, numpy as np, subprocess
from selfdistill_fast import RBF, sweep
rng = np.random.default_rng(0)
X, y = rng.normal(size=(30, 2)), rng.normal(size=30)
def go(store, **options):
    return sweep(X, y, kernels=[RBF(0.1 * g) for g in range(1, 9)], lams=[0.1, 1.0],
                 alphas=[0, 0.5, "optimal"], n_steps=3, progress=False, store=store, **options)
"""


def test_a_full_disk(tmp_path):
    """A real one: 400 KiB hold some kernels but not eight; with more room it goes on."""
    script = (
        SWEEP
        + f"""
store = {str(tmp_path)!r} + "/store"
try:
    go(store)
except OSError as error:
    assert error.errno == 28 and "Free some space" in str(error), error
    kept = len(os.listdir(store + "/.sweep/done"))
    assert f"it holds {{kept}} of 8 kernels" in str(error), error
else:
    raise SystemExit("it fitted")
subprocess.run(["mount", "-o", "remount,size=8m", {str(tmp_path)!r}], check=True)
result = go(store)
assert result.dataset.identical(go(None).dataset)
print(kept)
"""
    )
    kept = int(in_a_mount(script, tmp_path, "size=400k")[0])
    assert 0 < kept < 8


def test_a_read_only_store(tmp_path):
    """A finished one is read all the same; an unfinished one and a new one are errors."""
    script = (
        SWEEP
        + f"""
import shutil
import signal
folder = {str(tmp_path)!r}
expected = go(folder + "/finished")
go(folder + "/partial")
shutil.rmtree(folder + "/partial/kernel-0003")
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
assert go(folder + "/finished").dataset.identical(expected.dataset)
for name in ("partial", "new"):
    try:
        go(folder + "/" + name)
    except OSError as error:
        assert "Make it writable" in str(error) and folder in str(error), error
        print(name)
subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
assert go(folder + "/partial").dataset.identical(expected.dataset)
"""
    )
    assert in_a_mount(script, tmp_path, "size=8m") == ["partial", "new"]


@pytest.mark.parametrize("store", [False, True])
def test_a_failing_kernel_is_named_and_the_others_kept(store, problem, tmp_path, factorised):
    kernels = [RBF(0.5), Polynomial(900, 1e30), RBF(1.0), Polynomial(950, 1e30)]
    path = tmp_path / "store" if store else None
    with pytest.raises(ValueError, match=r"^Polynomial\(degree=900.*overflows") as caught:
        go(problem, path, kernels=kernels)
    if not store:
        assert len(factorised) == 2  # nothing would be kept of the others
        return
    assert "degree=950" in str(caught.value)
    result = SweepResult.load(path)
    assert result.kernels == [RBF(0.5), RBF(1.0)]
    expected = go(problem, kernels=[RBF(0.5), RBF(1.0)])
    for name in ("mse_loo", "alphas"):
        assert result.dataset[name].values.tobytes() == expected.dataset[name].values.tobytes()
    before = len(factorised)
    with pytest.raises(ValueError, match="overflows"):
        go(problem, path, kernels=kernels)
    assert factorised[before:] == [kernels[1], kernels[3]]


def test_ctrl_c_says_how_to_go_on(problem, tmp_path, monkeypatch):
    seen = []

    def interrupted(X, y, kernel, **options):
        seen.append(kernel)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return spectrum(X, y, kernel, **options)

    monkeypatch.setattr(score_module, "spectrum", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        go(problem, tmp_path / "store")
    (note,) = caught.value.__notes__
    assert "2 of 4 kernels are finished and saved in" in note
    assert same(go(problem), go(problem, tmp_path / "store"))
    assert len(seen) == 3 + 4 + 2


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_counts_kernels_on_a_terminal(terminal, problem, tmp_path, monkeypatch):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    go(problem, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "kernel-0001")
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    go(problem, tmp_path / "store", progress=True)
    text = stream.getvalue()
    if terminal:
        assert "3/4" in text  # what the store has counts as done
        assert "4/4" in text
        assert "kernel/s" in text
        assert "<" in text  # elapsed<left
    else:
        assert text == ""


KILLED = """
import os, pickle, random, shutil, signal, sys, time
# everything is imported before the first fork
import dask.array, importlib, numpy as np, scipy.linalg, scipy.optimize
import xarray, xarray.backends.zarr, zarr
from selfdistill_fast import RBF, spectrum, sweep

xarray.backends.list_engines()
module = importlib.import_module("selfdistill_fast._sweep.score")
folder, kernels = sys.argv[1], [RBF(0.2 * g) for g in range(1, 6)]
rng = np.random.default_rng(0)
X, y = rng.normal(size=(90, 3)), rng.normal(size=(90, 2))

def start(store, report=None):
    pid = os.fork()
    if pid:
        return pid
    try:
        calls = []
        def counted(*args, **options):
            calls.append(1)
            return spectrum(*args, **options)
        module.spectrum = counted
        began = time.perf_counter()
        data = sweep(X, y, kernels=kernels, lams=[0.1, 1.0], alphas=[0, 0.3, "optimal", "joint"],
                     n_steps=4, store=store, progress=False).dataset
        seconds = time.perf_counter() - began
        if report:
            bits = {name: v.values.tobytes() for name, v in data.variables.items()}
            with open(report, "wb") as file:
                pickle.dump((bits, data.attrs, len(calls), seconds), file)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)

def finish(store):
    report = folder + "/report"
    assert os.waitpid(start(store, report), 0)[1] == 0, "a restart failed"
    with open(report, "rb") as file:
        return pickle.load(file)

*expected, count, seconds = finish(folder + "/undisturbed")
assert count == len(kernels)
chance, kills, stages = random.Random(1), 0, []
store = folder + "/store"
while kills < 20:
    pid = start(store)
    time.sleep(chance.uniform(0, seconds))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status):
        assert status == 0
        shutil.rmtree(store)  # finished before: a new one
        continue
    kills += 1
    if not os.path.isdir(store):
        continue
    done = store + "/.sweep/done"
    finished = len(os.listdir(done)) if os.path.isdir(done) else 0
    stages.append(finished)
    shutil.copytree(store, folder + "/restart")
    *restarted, count, _ = finish(folder + "/restart")
    assert restarted == expected, "other bits"
    assert count == len(kernels) - finished, (count, finished)
    shutil.rmtree(folder + "/restart")
print(kills, len(set(stages)), len(stages))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_twenty_random_moments(tmp_path):
    """Every restart ends with the same bits and computes no finished kernel again.

    The store goes from kill to kill; after each a copy of it is finished and compared.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)],
        env={**os.environ, **threads}, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills, stages, compared = map(int, done.stdout.split())
    assert kills == 20
    assert stages >= 3  # the kills were not all at one place
    assert compared >= 10


# ------------------------------------------------------- figure and command line
def test_figures(problem):
    """The heat map shows every λ and step of the cell's entry; α* or the error beside it."""
    lams = [2.0, 0.05, 0.3]  # in any order
    result = go(problem, alphas=[0, 0.5, "optimal"], lams=lams)
    figure = result.plot(kernel=KERNELS[1], alpha="0.5")
    left, right = figure.axes[:2]
    cells = result.dataset.mse_loo.sel(kernel=repr(KERNELS[1]), alpha="0.5").sortby("lam")
    shown = np.asarray(left.images[0].get_array())
    np.testing.assert_allclose(shown, np.sqrt(cells.values[..., 0]))
    frame = left.patches[0]
    row, column = np.unravel_index(shown.argmin(), shown.shape)
    assert frame.get_xy() == (column - 0.5, row - 0.5)
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["0.05", "0.3", "2"]
    curves = result.dataset.alphas.sel(kernel=repr(KERNELS[1]), alpha="optimal").sortby("lam")
    for line, step in zip(right.lines, (2, 3), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), curves.sel(step=step))
    plain = go(problem, alphas=[0.5, 0, 1], lams=lams).plot()
    right = plain.axes[1]
    assert right.get_xlabel() == "α"
    assert right.lines[0].get_xdata().tolist() == [0, 0.5, 1]
    unknown = result.dataset.copy(deep=True)
    unknown["mse_loo"][{"kernel": 1}] = np.nan
    labels = {"kernel": unknown.kernel.values[1], "alpha": "0.5"}
    with pytest.raises(ValueError, match=r"no error of kernel .* is known.*another kernel"):
        figure_sweep(unknown, variable="mse_loo", **labels)
    assert len(go(problem, alphas=[[0.5, 0]]).plot().axes) == 2  # the map and its colour bar
    with pytest.raises(ValueError, match="no kernel 'RBF'"):
        result.plot(kernel="RBF")
    with pytest.raises(ValueError, match="score must be leave-one-out here"):
        result.plot(score="validation")


CONFIG = """
[data]
file = "data.csv"
target = ["y", "z"]
validation = 0.25
standardize = true
[[kernels]]
name = "rbf"
gamma = [0.1, 0.5]
[[kernels]]
name = "matern"
nu = [0.5, inf]
length_scale = { from = 1, to = 4, count = 3 }
[grid]
lams = { from = 0.01, to = 1, count = 3 }
alphas = [0, 0.5, "optimal"]
steps = 3
leave_one_out = true
[output]
store = "sweep.zarr"
figure = "sweep.png"
"""


@pytest.fixture
def config(tmp_path, rng):
    import pandas as pd

    X, y, _, _ = draw(rng, n=60, p=2)
    frame = pd.DataFrame({"a": X[:, 0], "b": 30 * X[:, 1], "y": 100 * y[:, 0], "z": y[:, 1]})
    frame.to_csv(tmp_path / "data.csv", index=False)
    (tmp_path / "sweep.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path / "sweep.toml"


def command(*arguments, code=0):
    from typer.testing import CliRunner

    from selfdistill_fast.cli import app

    result = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_the_command_prints_the_best_cells_in_the_units_of_the_data(config, factorised):
    from selfdistill_fast.cli.dataset import Layout, Scaling, split
    from selfdistill_fast.cli.tables import read_table

    output = command(config, "--top", 3)
    assert "8 kernels × 3 λ × 3 α × 3 steps" in output
    assert "45 training rows, 15 validation rows" in output
    assert (config.parent / "sweep.png").read_bytes().startswith(b"\x89PNG")
    table = read_table(config.parent / "data.csv")
    layout = Layout.choose(table, ["y", "z"], None, [])
    train, held = split(table, layout, {"validation": "0.25"})
    scaling = Scaling.of(train, wanted=True)
    stored = SweepResult.load(config.parent / "sweep.zarr")
    assert [type(kernel) for kernel in stored.kernels] == [RBF] * 2 + [Matern] * 6
    assert stored.kernels[3] == Matern(2.0, 0.5)
    # the first row of the table is the smallest error, and is what its model has
    units = np.square(scaling.y_std)
    mse = (stored.dataset.mse_val * units).mean("target")
    row = next(line.split() for line in output.splitlines() if line.startswith(("RBF(", "Matern(")))
    assert float(row[-2]) == pytest.approx(np.sqrt(mse.min().item()), rel=1e-6)
    cell = mse.where(mse == mse.min(), drop=True)
    kernel = stored.kernels[stored.dataset.kernel.values.tolist().index(cell.kernel.item())]
    labels = {name: cell[name].item() for name in ("kernel", "lam", "alpha")}
    step = cell.step.item()
    rows = scaling.apply(train)
    alphas = stored.dataset.alphas.sel(labels).values[:step]
    path = distill(spectrum(rows.X, rows.Y, kernel), labels["lam"], alphas, step)
    F = scaling.original(path.predict(scaling.features(held["validation"].X)))
    assert float(row[-2]) == pytest.approx(held["validation"].rmse(F[None])[0], rel=1e-6)
    # again: from the store, and the same table
    assert len(factorised) == 8
    assert command(config, "--top", 3) == output
    assert len(factorised) == 8
    command(config, "--overwrite")
    assert len(factorised) == 16


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[data]", "[dada]", "unknown key 'dada'; known: data, kernels, grid, solver, output"),
        ("standardize", "standardise", "[data]: unknown key 'standardise'; known: file"),
        ("standardize", "standardise", "did you mean 'standardize'?"),
        ("gamma =", "gama =", "[kernels]: unknown key 'gama'; known: name, gamma"),
        ("gamma =", "nu =", "nu has no meaning for the kernel rbf, which takes gamma"),
        ('"rbf"', '"rbg"', "unknown kernel 'rbg'; known: rbf, laplacian"),
        ("gamma = [0.1, 0.5]", "gamma = [0.1, -1]", "gamma must be finite and > 0"),
        ("gamma = [0.1, 0.5]", 'gamma = "big"', "gamma must hold numbers, got 'big'"),
        ("count = 3 }", "count = 0 }", "count >= 1"),
        ("count = 3 }", "size = 3 }", "must have from, to and count"),
        ("steps = 3", "", "[grid] needs steps"),
        ("steps = 3", "steps = 2.5", "steps must be an integer"),
        ("standardize = true", 'standardize = "yes"', "standardize must be true or false"),
        ("alphas = [0,", 'alphas = ["best",', "'optimal' and 'joint'"),
        ('file = "data.csv"', "", "needs either file or sklearn"),
        ('file = "data.csv"', 'sklearn = "mnist"', "must be one of breast_cancer, diabetes"),
        ('"data.csv"', '"nowhere.csv"', "no such file"),
        ('["y", "z"]', '"q"', "no column 'q'"),
        ("validation = 0.25", "validation = 25", "between 0 and 1"),
        ("[grid]", "[grid", "sweep.toml: "),
        ("count = 3 }", "count = true }", "count >= 1"),
        ("to = 1,", "to = inf,", "must be finite and > 0"),
        ("alphas = [0,", "alphas = [true,", "alpha must be a number, got True"),
        ("validation = 0.25", "validation = 0.25\nseed = -1", "seed must be >= 0, got -1"),
        (
            "[grid]",
            '[solver]\nname = "nystrom"\noptions = { n_landmark = 9 }\n[grid]',
            "no option n_landmark",
        ),
        ('"sweep.png"', '"sweep.doc"', "use .png, .svg or .pdf"),
        ('"sweep.zarr"', '"data.csv"', "is a file; a store is a directory"),
    ],
)
def test_mistakes_in_the_file_are_named(old, new, message, config):
    text = config.read_text(encoding="utf-8")
    assert old in text
    config.write_text(text.replace(old, new, 1), encoding="utf-8")
    output = command(
        config,
        code=2
        if "optimal" not in message and "use" not in message and "is a file" not in message
        else 1,
    )
    assert message in " ".join(output.split())
    assert not (config.parent / "sweep.zarr").exists()


def test_every_key_of_the_file_is_known_to_its_description():
    from selfdistill_fast.cli import sweep_file

    for name, section in sweep_file.TABLES.items():
        assert f"[{name}]" in sweep_file.__doc__
        for key in section.model_fields:
            if name != "kernels":
                assert f"    {key} = " in sweep_file.__doc__, key


def test_the_command_ends_quietly_on_ctrl_c(config, monkeypatch):
    seen = []

    def interrupted(X, y, kernel, **options):
        seen.append(kernel)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return spectrum(X, y, kernel, **options)

    monkeypatch.setattr(score_module, "spectrum", interrupted)
    output = command(config, code=130)
    assert "2 of 8 kernels are finished and saved" in " ".join(output.split())
    command(config)
    assert len(seen) == 3 + 6


# ------------------------------------------------------------------ Dask
@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**options, processes=True, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def one_thread():
    """BLAS in this process as in a worker of one thread."""
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def test_a_cluster_gives_the_bits_of_one_process(cluster, one_thread, rng, tmp_path):
    X, y, X_val, y_val = draw(rng, n=200, p=2)
    options = {"X_val": X_val, "y_val": y_val, "leave_one_out": True}
    expected = go((X, y, None, None), **options)
    assert same(expected, go((X, y, None, None), client=cluster, **options))
    stored = go((X, y, None, None), tmp_path / "store", client=cluster, **options)
    assert same(expected, stored)
    assert same(expected, SweepResult.load(tmp_path / "store"))
    shutil.rmtree(tmp_path / "store" / "kernel-0001")
    assert same(expected, go((X, y, None, None), tmp_path / "store", client=cluster, **options))


@pytest.fixture
def slow_workers(cluster):
    """Workers that take their time for each kernel, so that there is some left when they die."""

    def install():
        module = importlib.import_module("selfdistill_fast._sweep.executors")
        real = module.score_kernel

        def slow(*args):
            time.sleep(0.4)
            return real(*args)

        module.score_kernel, module._real = slow, real

    def remove():
        module = importlib.import_module("selfdistill_fast._sweep.executors")
        module.score_kernel = getattr(module, "_real", module.score_kernel)

    cluster.wait_for_workers(2, timeout=60)
    cluster.run(install)
    yield cluster
    cluster.wait_for_workers(2, timeout=60)
    cluster.run(remove)


def kill_once_something_is_done(store, choose_pids, killed):
    """A thread that waits for the first finished kernel, then kills."""

    def kill():
        while not list((store / ".sweep" / "done").glob("*.json")):
            time.sleep(0.005)
        for pid in choose_pids():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("how_many", [1, 2])
def test_killed_workers_change_nothing(how_many, slow_workers, one_thread, problem, tmp_path):
    """One is killed at work: its kernel is computed elsewhere. Both: the data are sent again."""
    client, store, killed = slow_workers, tmp_path / "store", []
    kernels = [RBF(0.2 * g) for g in range(1, 9)]
    pids = client.run(os.getpid)

    def busy_ones():
        busy = [worker for worker, tasks in client.processing().items() if tasks]
        return [pids[worker] for worker in sorted(busy)[:how_many]]

    killer = kill_once_something_is_done(store, busy_ones, killed)
    result = go(problem, store, kernels=kernels, client=client)
    killer.join(timeout=10)
    assert len(killed) == how_many
    expected = go(problem, kernels=kernels)
    assert same(expected, result)
    assert same(expected, SweepResult.load(store))
    client.wait_for_workers(2, timeout=60)
    assert not set(killed) & set(client.run(os.getpid).values())


def test_a_failing_kernel_on_a_cluster(cluster, problem, tmp_path):
    kernels = [RBF(0.5), Polynomial(900, 1e30), RBF(1.0)]
    with pytest.raises(ValueError, match=r"^Polynomial\(degree=900.*overflows"):
        go(problem, tmp_path / "store", kernels=kernels, client=cluster)
    assert SweepResult.load(tmp_path / "store").kernels == [RBF(0.5), RBF(1.0)]
    with pytest.raises(ValueError, match="overflows"):
        go(problem, kernels=kernels, client=cluster)


def test_a_full_disk_stops_the_cluster(cluster, problem, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_zarr", full)
        with pytest.raises(OSError, match="run the same sweep again"):
            go(problem, tmp_path / "store", client=cluster)
    result = go(problem, tmp_path / "store", client=cluster)
    assert_close(result.dataset.mse_loo.values, go(problem).dataset.mse_loo.values, 1e-9)


def threads_of_a_task(store):
    """In place of a sweep's work: what BLAS and our loops would use, and who else is at work."""
    from threadpoolctl import threadpool_info

    def score(job, data, kernel):
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        alone = store / f"{os.getpid()}"
        alone.mkdir()  # fails where another kernel is at work in this process
        time.sleep(0.05)
        alone.rmdir()
        zeros = np.zeros((1, 1, 1, 1))
        used = job.backend.n_threads, *sorted(set(blas))
        return {"mse_loo": zeros, "alphas": zeros[..., 0], "solver": str(used)}

    return score


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_worker_uses_its_own_threads_and_no_more(threads, problem, tmp_path):
    """One kernel at a time in a process, with as many threads as Dask gave the worker."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": threads, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**options, processes=True, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        work = threads_of_a_task(tmp_path)

        def install(work=work):
            sys.modules["selfdistill_fast._sweep.executors"].score_kernel = work

        client.run(importlib.import_module, "selfdistill_fast._sweep.executors")
        client.run(install)
        result = go(problem, lams=1.0, alphas=0, n_steps=1, client=client)
    assert set(result.dataset.solver.values) == {str((threads, threads))}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"solver": "krylov"}, ValueError, "leave-one-out needs diagonals"),
        ({"solver": "tridiagonal"}, ValueError, "leave-one-out needs diagonals"),
        ({"solver": "cholesky", "n_steps": 5}, ValueError, "at most 4 steps, 5 were requested"),
        ({"kernels": None}, TypeError, "kernel must be"),
        ({"alphas": None}, TypeError, "alpha must be"),
        ({"solver_options": {"tol": 3}}, ValueError, "tol must be"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_store_is_made(
    problem, factorised, tmp_path, options, error, match
):
    X, y, _, _ = problem
    grid = {"kernels": [RBF(0.1)], "lams": [0.1, 1.0], "n_steps": 2, "store": tmp_path / "s.zarr"}
    with pytest.raises(error, match=match):
        sweep(X, y, **{**grid, **options}, progress=False)
    assert not factorised
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_of_another_format_is_not_read(problem, tmp_path):
    store = tmp_path / "s.zarr"
    go(problem, store)
    manifest = store / ".sweep" / "manifest.json"
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace("store, version 1", "store, version 2")
    )
    with pytest.raises(ValueError, match="this version reads"):
        SweepResult.load(store)


def test_auto_chooses_a_solver_for_each_kernel(rng):
    """A plan for a linear kernel was used for the others, which its solver does not serve."""
    X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    for kernels in ([RBF(0.3), Linear()], [Linear(), RBF(0.3)]):
        result = sweep(X, y, kernels=kernels, lams=[0.1, 1.0], n_steps=2, alphas=[0.5])
        for kernel in kernels:
            s = spectrum(X, y, kernel, solver="eigh")
            expected = np.square(leave_one_out(s, 0.1, 0.5, 2) - y).mean(1)
            cells = result.dataset["mse_loo"].sel(kernel=repr(kernel), lam=0.1)
            np.testing.assert_allclose(np.ravel(cells), expected, rtol=1e-9)
