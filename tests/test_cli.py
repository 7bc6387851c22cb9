"""The command line: what it prints and writes, what it computes, how it fails."""

from __future__ import annotations

import functools
import gzip
import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from sklearn.kernel_ridge import KernelRidge
from typer.testing import CliRunner

import selfdistill_fast
from selfdistill_fast import Matern, SelfDistilledKernelRidge, __main__, load
from selfdistill_fast._chain import leave_out
from selfdistill_fast.cli import app
from selfdistill_fast.cli.tables import TableError, read_table, write_table

#: printed by the authors for steps 1..6 and the limit
PAPER = {
    "0": ".16477 .15076 .14915 .15561 .16735 .18251 .49505",
    "0.25": ".16477 .15309 .14958 .14903 .14946 .15011 .15250",
    "0.35": ".16477 .15424 .15089 .14983 .14954 .14948 .14959",
}


def run(*arguments, code=0):
    """Output of a command that must end with the given exit code and without a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.output


def fit(*arguments, tmp_path):
    """The results of ``fit`` with all digits."""
    report = tmp_path / "report.json"
    run("fit", *arguments, "--report", report)
    return json.loads(report.read_text(encoding="utf-8"))


def column(results, key):
    return np.array([row[key] for row in results["steps"]], dtype=float)


@pytest.fixture
def frame():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(60, 3))
    y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2] + 0.3 * rng.normal(size=60)
    return pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": 50.0 * X[:, 2] + 7, "y": 10 * y - 3})


@pytest.fixture
def csv(frame, tmp_path):
    frame.to_csv(tmp_path / "data.csv", index=False)
    return tmp_path / "data.csv"


def arrays(frame):
    return frame[["a", "b", "c"]].to_numpy(), frame["y"].to_numpy()


# ------------------------------------------------------------------ example
def test_example_prints_the_losses_of_the_paper(tmp_path):
    output = run("example", "--out", tmp_path, "--format", "png")
    printed = {words[0]: words[1:] for words in map(str.split, output.splitlines()) if words}
    for alpha, losses in PAPER.items():
        assert printed[alpha] == losses.split()
    assert ".14834" in output  # α* at step 2
    assert "-0.62184" in output


def test_example_writes_figures(tmp_path):
    output = run("example", "--out", tmp_path / "new" / "directory")
    for name in ("figure2", "figure3", "figure4"):
        png = tmp_path / "new" / "directory" / f"{name}.png"
        svg = png.with_suffix(".svg")
        assert str(png) in output
        assert str(svg) in output
        pixels = imread(png)
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 900
        # ink in each of the three panels
        for panel in np.array_split(pixels[..., :3], 3, axis=1):
            assert len(np.unique((panel * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 50
        root = ElementTree.parse(svg).getroot()
        assert root.tag.endswith("svg")
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 50


def test_example_is_reproducible_to_the_byte(tmp_path):
    run("example", "--out", tmp_path / "a")
    run("example", "--out", tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


# --------------------------------------------------------------------- data
@pytest.mark.parametrize("kind", ["csv.gz", "parquet", "numbers only", "semicolon", "tab", "blank"])
def test_every_format_gives_the_same_results(kind, frame, csv, tmp_path):
    expected = fit(csv, "--target", "y", tmp_path=tmp_path)
    target = "y"
    if kind == "csv.gz":
        data = tmp_path / "data.csv.gz"
        data.write_bytes(gzip.compress(csv.read_bytes()))
    elif kind == "parquet":
        data = tmp_path / "data.parquet"
        frame.to_parquet(data)
    elif kind == "numbers only":
        data, target = tmp_path / "bare.csv", "-1"
        frame.to_csv(data, index=False, header=False)
    else:
        data = tmp_path / "other.csv"
        frame.to_csv(data, index=False, sep={"semicolon": ";", "tab": "\t", "blank": " "}[kind])
    assert fit(data, "--target", target, tmp_path=tmp_path)["steps"] == expected["steps"]


def test_names_and_text_may_hold_other_delimiters(tmp_path):
    file = tmp_path / "odd.csv"
    file.write_text('"a, mm";b c;"y"\n1;u, v;3\n2;;4\n', encoding="utf-8")
    table = read_table(file)
    assert table.names == ["a, mm", "b c", "y"]
    assert table.array([0, 2]).tolist() == [[1, 3], [2, 4]]
    file.write_text(",2.5\n1,3.5\n", encoding="utf-8")  # a missing value is not a name
    assert not read_table(file).has_names
    file.write_text("y,note\n1,u\n2,v\n", encoding="utf-8")  # a header above text
    assert read_table(file).names == ["y", "note"]


def test_a_header_can_be_forced(tmp_path):
    file = tmp_path / "years.csv"
    file.write_text("2001,2002\n1,2\n3,5\n4,4\n", encoding="utf-8")
    assert read_table(file).has_names is False
    assert len(read_table(file)) == 4
    assert read_table(file, header=True).names == ["2001", "2002"]
    assert fit(file, "--header", tmp_path=tmp_path)["n_train"] == 3
    assert fit(file, "--no-header", tmp_path=tmp_path)["n_train"] == 4


def test_cells_survive_to_the_last_bit(frame, tmp_path):
    file = tmp_path / "a.csv"
    write_table(file, list(frame.columns), frame.to_numpy())
    assert np.array_equal(read_table(file).array([0, 1, 2, 3]), frame.to_numpy())


def test_columns_by_name_number_and_from_the_end(csv):
    table = read_table(csv)
    assert [table.find(name) for name in ("b", 1, "1", -3, "-3")] == [1] * 5
    with pytest.raises(TableError, match="did you mean 'y'"):
        table.find("Y ".strip().lower() + "y")


# ------------------------------------------------------------------ numbers
def test_fit_equals_the_estimator(frame, csv, tmp_path):
    X, y = arrays(frame)
    results = fit(csv, "--kernel", "laplacian", "--gamma", 0.05, "--lam", 0.1, "--steps", 4,
                  "--intercept", tmp_path=tmp_path)  # fmt: skip
    model = SelfDistilledKernelRidge(
        "laplacian", gamma=0.05, lam=0.1, n_steps=4, fit_intercept=True
    ).fit(X, y)
    assert results["alphas"][0] is None
    np.testing.assert_allclose(results["alphas"][1:], model.alphas_[1:], rtol=1e-12)
    np.testing.assert_allclose(column(results, "loo_rmse"), np.sqrt(model.loo_mse_), rtol=1e-12)
    train = np.sqrt(np.mean((model.predict_path(X) - y) ** 2, axis=1))
    np.testing.assert_allclose(column(results, "train_rmse"), train, rtol=1e-12)
    assert results["best_step_by_loo"] == 1 + np.argmin(model.loo_mse_)
    assert results["limit"] is None


def test_standardised_fit_equals_the_estimator_in_the_units_of_the_data(frame, csv, tmp_path):
    X, y = arrays(frame)
    frame.iloc[:20].to_csv(tmp_path / "test.csv", index=False)
    results = fit(csv, "--kernel", "matern", "--length-scale", 2, "--lam", 0.2, "--alpha", 0.25,
                  "--standardize", "--test", tmp_path / "test.csv", tmp_path=tmp_path)  # fmt: skip
    Z, t = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    model = SelfDistilledKernelRidge(Matern(2.0, 1.5), lam=0.2, alpha=0.25, n_steps=4).fit(Z, t)
    expected = np.sqrt(np.mean((model.predict_path(Z)[:, :20] - t[:20]) ** 2, axis=1)) * y.std()
    np.testing.assert_allclose(column(results, "test_rmse"), expected, rtol=1e-12)
    limit = np.sqrt(np.mean((model.predict(Z, step=math.inf) - t) ** 2)) * y.std()
    np.testing.assert_allclose(results["limit"]["train_rmse"], limit, rtol=1e-12)
    ridge = SelfDistilledKernelRidge(Matern(2.0, 1.5), lam=0.8, n_steps=1).fit(Z, t)
    np.testing.assert_allclose(
        results["limit"]["loo_rmse"], np.sqrt(ridge.loo_mse_[0]) * y.std(), rtol=1e-12
    )


def test_validation_rows_choose_alpha_and_test_rows_only_score(frame, csv, tmp_path):
    X, y = arrays(frame)
    fold = np.arange(60) % 3
    masks = pd.DataFrame({"val": (fold == 1).astype(int), "test": (fold == 2).astype(int)})
    masks.to_csv(tmp_path / "masks.csv", index=False)
    held = ("--val", f"{tmp_path}/masks.csv:val", "--test", f"{tmp_path}/masks.csv:test")
    results = fit(csv, *held, "--lam", 0.3, "--gamma", 0.01, tmp_path=tmp_path)
    model = SelfDistilledKernelRidge(lam=0.3, gamma=0.01, n_steps=4).fit(
        X[fold == 0], y[fold == 0], X_val=X[fold == 1], y_val=y[fold == 1]
    )
    assert (results["n_train"], results["n_val"], results["n_test"]) == (20, 20, 20)
    np.testing.assert_allclose(results["alphas"][1:], model.alphas_[1:], rtol=1e-12)
    for key, rows in (("val_rmse", fold == 1), ("test_rmse", fold == 2)):
        expected = np.sqrt(np.mean((model.predict_path(X[rows]) - y[rows]) ** 2, axis=1))
        np.testing.assert_allclose(column(results, key), expected, rtol=1e-12)


def test_fractions_are_disjoint_and_follow_the_seed(csv, tmp_path):
    parts = ("--val", "0.25", "--test", "0.2")
    first, again, other = (
        fit(csv, *parts, "--seed", seed, tmp_path=tmp_path) for seed in (1, 1, 2)
    )
    assert (first["n_train"], first["n_val"], first["n_test"]) == (33, 15, 12)
    assert first == again
    assert first["steps"] != other["steps"]


def test_weights_and_several_targets(frame, tmp_path):
    X, y = arrays(frame)
    Y = np.column_stack([y, np.cos(y)])
    w = np.linspace(0.0, 2.0, 60)
    frame.assign(y2=Y[:, 1], w=w, note="text").to_csv(tmp_path / "d.csv", index=False)
    results = fit(tmp_path / "d.csv", "--target", "y", "--target", "y2", "--weights", "w",
                  "--drop", "note", "--gamma", 0.01, tmp_path=tmp_path)  # fmt: skip
    model = SelfDistilledKernelRidge(gamma=0.01, n_steps=4).fit(X, Y, w)
    np.testing.assert_allclose(results["alphas"][1:], model.alphas_[1:], rtol=1e-12)
    np.testing.assert_allclose(column(results, "loo_rmse"), np.sqrt(model.loo_mse_), rtol=1e-12)
    assert results["targets"] == ["y", "y2"]
    assert results["n_features"] == 3


@pytest.mark.parametrize("alpha", ["joint", "0.2,0.3,-0.5", "1"])
def test_other_alphas(alpha, frame, csv, tmp_path):
    X, y = arrays(frame)
    results = fit(csv, "--alpha", alpha, "--gamma", 0.01, tmp_path=tmp_path)
    wanted = [float(a) for a in alpha.split(",")] if alpha != "joint" else alpha
    wanted = wanted[0] if len(wanted) == 1 else wanted
    model = SelfDistilledKernelRidge(gamma=0.01, n_steps=4, alpha=wanted).fit(X, y)
    np.testing.assert_allclose(results["weights"], model.weights_, rtol=1e-12, atol=1e-12)
    train = np.sqrt(np.mean((model.predict(X) - y) ** 2))
    np.testing.assert_allclose(column(results, "train_rmse")[-1], train, rtol=1e-12)
    if alpha == "1":
        assert np.ptp(column(results, "train_rmse")) < 1e-12


def test_solvers_agree_and_long_chains_do_without_cholesky(csv, tmp_path):
    options = (csv, "--alpha", "0.25", "--gamma", "0.01", "--intercept")
    one, other = (fit(*options, "--solver", s, tmp_path=tmp_path) for s in ("eigh", "cholesky"))
    assert (one["solver"], other["solver"]) == ("eigh", "cholesky")
    for key in ("train_rmse", "loo_rmse", "dof"):
        np.testing.assert_allclose(column(one, key), column(other, key), rtol=1e-10)
        assert one["limit"][key] == pytest.approx(other["limit"][key], rel=1e-10)
    assert fit(*options, "--steps", 9, tmp_path=tmp_path)["solver"] == "eigh"
    # asked for by name it has no leave-one-out of nine steps, but everything else
    results = fit(*options, "--steps", 9, "--solver", "cholesky", tmp_path=tmp_path)
    assert results["best_step_by_loo"] is None
    assert all(row["loo_rmse"] is None for row in results["steps"])
    long = ("fit", csv, "--steps", 9, "--solver", "cholesky")
    assert "no leave-one-out column" in run(*long, "--alpha", "0.25")
    assert "at most 4 steps" in run(*long, code=1)


def test_the_table_says_what_matters(csv):
    output = run("fit", csv, "--alpha", "0.25", "--gamma", "0.01", "--val", "0.2", "--test", "0.2")
    for word in ("training", "leave-one-out", "validation", "test", "eff. dof", "∞", "0.25"):
        assert word in output
    assert "Best step by leave-one-out:" in output
    assert "\x1b" not in output
    # the limit of α = 0 is the zero function
    assert "∞" in run("fit", csv, "--alpha", "0")
    assert "∞" not in run("fit", csv, "--alpha", "optimal")


def test_a_hint_where_scales_differ(frame, csv, tmp_path):
    assert "hint:" not in run("fit", csv)
    frame.assign(c=1e6 * frame["c"]).to_csv(tmp_path / "wide.csv", index=False)
    assert "--standardize" in run("fit", tmp_path / "wide.csv")
    assert "hint:" not in run("fit", tmp_path / "wide.csv", "--standardize")


def test_error_figure(csv, tmp_path):
    run("fit", csv, "--figure", tmp_path / "errors.png", "--test", "0.2")
    assert len(np.unique(imread(tmp_path / "errors.png")[..., :3].reshape(-1, 3), axis=0)) > 50


# ------------------------------------------------------------------ predict
@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("standardize", [True, False])
def test_predictions_survive_saving(frame, csv, tmp_path, suffix, standardize):
    X, y = arrays(frame)
    model, out = tmp_path / "model.npz", tmp_path / f"predictions.{suffix}"
    flag = ("--standardize",) if standardize else ()
    run("fit", csv, "--save", model, "--gamma", 0.3, *flag)
    x_mean, x_std, y_mean, y_std = X.mean(0), X.std(0), y.mean(), y.std()
    if not standardize:
        x_mean, x_std, y_mean, y_std = 0.0, 1.0, 0.0, 1.0
    fitted = SelfDistilledKernelRidge(gamma=0.3, n_steps=4)
    fitted.fit((X - x_mean) / x_std, (y - y_mean) / y_std)
    expected = fitted.predict_path((X - x_mean) / x_std).T * y_std + y_mean

    run("predict", model, csv, "--out", out, "--step", "all")
    found = read_table(out)
    assert found.names == [f"y_step{t}" for t in (1, 2, 3, 4)]
    np.testing.assert_allclose(found.array(range(4)), expected, rtol=1e-12, atol=1e-12)

    # without the target, columns in another order, one step, to standard output
    frame[["c", "a", "b"]].to_csv(tmp_path / "new.csv", index=False)
    lines = run("predict", model, tmp_path / "new.csv", "--step", "2").split()
    assert lines[0] == "y"
    np.testing.assert_allclose(np.array(lines[1:], float), expected[:, 1], rtol=1e-12, atol=1e-12)


def test_predict_by_number_where_there_are_no_names(frame, tmp_path):
    bare, model = tmp_path / "bare.csv", tmp_path / "m.npz"
    frame[["a", "y", "b", "c"]].to_csv(bare, index=False, header=False)
    run("fit", bare, "--target", "1", "--save", model, "--alpha", "0.5", "--gamma", 0.01)
    full = run("predict", model, bare, "--step", "inf")
    assert full.startswith("prediction\n")
    frame[["a", "b", "c"]].to_csv(tmp_path / "x.csv", index=False, header=False)
    assert run("predict", model, tmp_path / "x.csv", "--step", "inf") == full
    frame[["a", "b"]].to_csv(tmp_path / "few.csv", index=False, header=False)
    assert "3 features" in run("predict", model, tmp_path / "few.csv", code=2)


def test_predict_refuses_what_does_not_fit(frame, csv, tmp_path):
    model = tmp_path / "model.npz"
    run("fit", csv, "--save", model)
    frame[["a", "c"]].to_csv(tmp_path / "lacks.csv", index=False)
    assert "lacks 1 of the 3 columns that the model needs: b" in run(
        "predict", model, tmp_path / "lacks.csv", code=2
    )
    assert "--step must be 1 to 4" in run("predict", model, csv, "--step", "9", code=2)
    assert "limit" in run("predict", model, csv, "--step", "inf", code=1)
    assert "no such file" in run("predict", tmp_path / "none.npz", csv, code=2)
    run("predict", csv, csv, code=1)
    whole = model.read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    run("predict", tmp_path / "cut.npz", csv, code=1)
    load(model).save(tmp_path / "foreign.npz", metadata={"who": "someone else"})
    assert "which columns" in run("predict", tmp_path / "foreign.npz", csv, code=2)
    target = tmp_path / "no" / "where.csv"
    assert "no directory" in run("predict", model, csv, "--out", target, code=2)


# ------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,y\n1,2,3\n2,x,4\n3,4,6\n", "column 'b', row 2: 'x' is not a number"),
        ("a,b,y\n1,2,3\n2,,4\n3,4,6\n", "column 'b', row 2: missing value"),
        ("a,b,y\n1,2,3\n2,NA,4\n3,,6\n", "row 2: missing value (and 1 more in this column)"),
        ("a,b,y\n1,2,3\n2,3,4\n3,4\n", "column 'y', row 3: missing value"),
        ("a,b,y\n1,2,3\n2,inf,4\n", "column 'b', row 2: infinite value"),
        ("a,b,y\n1,2,3\n2,3,4,5\n3,4,4\n", "rows of different lengths"),
        ("a,y\n1,2,3\n4,5,6\n", "rows of different lengths"),
        ("a,b,y\n1,2,3\n", "1 training row(s) are left; at least 2"),
        ("a,b,y\n", "no rows"),
        ("", "empty"),
        ("a\n1\n2\n", "none of its 1 column(s) is left as a feature"),
        ("a,b,y,y\n1,2,3,4\n2,3,3,3\n", "columns 2 and 3 are both named"),
    ],
)
def test_bad_data(text, message, tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text(text, encoding="utf-8")
    output = run("fit", file, code=0 if message is None else 2)
    if message is not None:
        assert message in output
        assert len(output.strip().splitlines()) == 1
        assert output.startswith("error: ")


def test_unreadable_files(csv, tmp_path):
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "fake.parquet").write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(csv.read_bytes())[:80])
    for name in ("binary.csv", "fake.parquet", "cut.csv.gz", "none.csv", "."):
        output = run("fit", tmp_path / name, code=2)
        assert output.startswith("error: ")
        assert len(output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--target z", "no column 'z'"),
        ("--target 9", "numbered from 0 to 3"),
        ("--target y --target -1", "named twice"),
        ("--weights y --target y", "both as target and as weights"),
        ("--weights b", "a weight must not be negative"),
        ("--drop y", "is to be dropped"),
        ("--drop a --drop b --drop c", "is left as a feature"),
        ("--lam 0", "--lam must be a positive number"),
        ("--lam -1", "--lam must be a positive number"),
        ("--lam nan", "--lam must be a positive number"),
        ("--alpha best", "'optimal', 'joint'"),
        ("--alpha 0.1,0.2", "--steps 4 needs 3"),
        ("--alpha nan", "finite"),
        ("--kernel gauss", "known: rbf"),
        ("--kernel linear --gamma 2", "no meaning for the kernel linear"),
        ("--kernel matern --nu 3", "nu must be one of"),
        ("--gamma -1", "gamma must be finite and > 0"),
        ("--test 1.5", "between 0 and 1"),
        ("--test 0.999", "none is left to train on"),
        ("--val none.csv", "no such file"),
        ("--val none.csv:1", "no such file"),
        ("--save nowhere/m.npz", "there is no directory nowhere"),
    ],
)
def test_bad_options(arguments, message, csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run("fit", csv, *arguments.split(), code=2)
    assert message in output
    assert len(output.strip().splitlines()) == 1


def test_bad_masks(csv, tmp_path):
    for text, message in (
        ("1\n" * 59, "has 59 rows"),
        ("0\n" * 60, "marks no row"),
        ("1\n" * 60, "none is left to train on"),
        ("0\n2\n" + "1\n" * 58, "row 2: a mask holds 0 and 1, got 2"),
    ):
        (tmp_path / "mask.csv").write_text(text, encoding="utf-8")
        assert message in run("fit", csv, "--test", f"{tmp_path}/mask.csv:0", code=2)
    (tmp_path / "mask.csv").write_text("1\n" + "0\n" * 59, encoding="utf-8")
    both = ("--test", f"{tmp_path}/mask.csv:0", "--val", f"{tmp_path}/mask.csv:0")
    assert "row 1 is held out by" in run("fit", csv, *both, code=2)


def test_library_errors_are_one_line(csv):
    assert "solver" in run("fit", csv, "--solver", "magic", code=1)
    # (x·z/3 − 5)³ is not positive semi-definite
    output = run("fit", csv, "--kernel", "polynomial", "--coef0", "-5", code=1)
    assert "not positive semi-definite" in output
    assert len(output.strip().splitlines()) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "out.csv"
    write_table(target, ["a"], np.ones((3, 1)))

    def full(self, file, **_):
        Path(file).write_text("half a fi", encoding="utf-8")
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="no space"):
        write_table(target, ["a"], np.zeros((3, 1)))
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]
    assert target.read_text(encoding="utf-8").split() == ["a", "1.0", "1.0", "1.0"]


# --------------------------------------------------------------------- info
def test_info():
    output = run("info")
    for word in ("selfdistill_fast", "processor", "memory available", "numpy", "GPU", "SDF_ISA"):
        assert word in output


def test_info_as_json():
    report = json.loads(_process("info", "--json").stdout)
    assert report["threads"]["available_cpus"] >= 1
    assert {"isa", "cpu", "blas", "gpu", "versions", "warnings", "memory_available"} <= set(report)
    assert report["versions"]["numpy"] == np.__version__


def test_info_warns_of_slow_blas_kernels():
    """OpenBLAS told to use older kernels than the processor has: the hint is there."""
    from selfdistill_fast import show_config

    config = show_config()
    if config["cpu"]["isa"] not in ("avx2", "avx512") or not any(
        blas["library"] == "openblas" and blas["isa"] for blas in config["blas"]
    ):
        pytest.skip("needs OpenBLAS on a processor with AVX2 or AVX-512")
    slow = _process("info", OPENBLAS_CORETYPE="Nehalem").stderr
    assert "OPENBLAS_CORETYPE=" in slow
    assert "Nehalem kernels" in slow
    best = {"avx512": "SkylakeX", "avx2": "Haswell"}[config["cpu"]["isa"]]
    assert "kernels" not in _process("info", OPENBLAS_CORETYPE=best).stderr


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal", "nystrom"])
def test_fit_with_solvers_for_many_rows(tmp_path, rng, solver):
    X = rng.normal(size=(60, 2))
    table = np.column_stack([X, np.sin(X.sum(1))])
    np.savetxt(tmp_path / "data.csv", table, delimiter=",", header="a,b,y", comments="")
    common = ["fit", tmp_path / "data.csv", "--target", "y", "--alpha", "0.4", "--json"]
    exact = json.loads(_process(*common, "--solver", "eigh").stdout)
    done = _process(*common, "--solver", solver)
    report = json.loads(done.stdout)
    assert report["solver"] == solver
    for name in ("steps", "limit"):
        ours, theirs = report[name], exact[name]
        for a, b in zip(
            [ours] if name == "limit" else ours,
            [theirs] if name == "limit" else theirs,
            strict=True,
        ):
            assert a["train_rmse"] == pytest.approx(b["train_rmse"], abs=1e-6)
    assert ("no leave-one-out column" in done.stderr) == (solver != "nystrom")


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
def test_fit_factorises_once_where_there_is_no_leave_one_out(tmp_path, rng, solver, monkeypatch):
    table = rng.normal(size=(30, 3))
    np.savetxt(tmp_path / "data.csv", table, delimiter=",", header="a,b,y", comments="")
    calls, original = [], selfdistill_fast.spectrum

    def counted(*args, **options):
        calls.append(options["lam"])
        return original(*args, **options)

    monkeypatch.setattr(selfdistill_fast, "spectrum", counted)
    run("fit", tmp_path / "data.csv", "--alpha", "0.4", "--solver", solver)
    assert calls == [1.0]


def test_fit_with_landmarks_follows_the_seed(csv, tmp_path, monkeypatch):
    original = selfdistill_fast.spectrum
    few = functools.partial(original, n_landmarks=8)
    monkeypatch.setattr(selfdistill_fast, "spectrum", few)
    options = (csv, "--solver", "nystrom", "--gamma", 0.01)
    first, again, other = (fit(*options, "--seed", s, tmp_path=tmp_path) for s in (0, 0, 1))
    assert first == again
    assert first["steps"] != other["steps"]


def _broken(*_, **__):
    raise ValueError("predictions overflow, say")


def test_a_fault_in_leave_one_out_is_not_its_absence(csv, monkeypatch):
    monkeypatch.setattr(leave_out, "mixed_held_out", _broken)
    output = run("fit", csv, "--alpha", "0.25", code=1)
    assert "error: predictions overflow, say" in output
    assert "no leave-one-out" not in output


def test_a_fault_in_the_limit_is_not_its_absence(csv, monkeypatch):
    original = selfdistill_fast.DistillationPath.predict

    def predict(self, X, step=None):
        return _broken() if step == math.inf else original(self, X, step)

    monkeypatch.setattr(selfdistill_fast.DistillationPath, "predict", predict)
    assert "error: predictions overflow, say" in run("fit", csv, "--alpha", "0.25", code=1)
    run("fit", csv)  # chosen α's have no limit


def test_a_limit_that_overflows_is_said(tmp_path):
    rows = ["a,y", *["0.5e-75,1e150"] * 4]
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    alpha = "--alpha=-0.9999999999"  # the limit is 1e10 times step 1
    arguments = (tmp_path / "data.csv", "--kernel", "linear", "--lam", "1e-150", "--steps", "1")
    output = run("fit", *arguments, alpha, "--solver", "eigh", code=1)
    assert "overflow float64" in output


def test_a_single_row_of_weight_with_an_intercept_has_no_leave_one_out(frame, tmp_path):
    frame["w"] = (np.arange(len(frame)) == 5).astype(float)
    frame.to_csv(tmp_path / "one.csv", index=False)
    options = (tmp_path / "one.csv", "--weights", "w", "--intercept", "--alpha", "0.25")
    results = fit(*options, "--target", "y", tmp_path=tmp_path)
    assert results["best_step_by_loo"] is None
    assert "loo_rmse" not in results["limit"]
    assert results["limit"]["train_rmse"] == pytest.approx(0.0, abs=1e-9)


def test_plan():
    output = run("plan", "20000", "8", "--lam", "0.1", "--lam", "1", "--max-memory", "1")
    for solver in ("eigh", "cholesky", "tridiagonal", "krylov", "nystrom"):
        assert solver in output
    assert "needs more than the 1 GiB allowed" in output
    report = json.loads(_process("plan", "500", "3", "--lam", "0.1", "--loo", "--json").stdout)
    assert report["solver"] == "cholesky"
    assert report["problem"] | {"n": 500, "d": 3, "p": 1, "lam": 0.1} == report["problem"]


def test_plan_of_nothing():
    assert "n must be an integer >= 1" in _process("plan", "0", "3", code=2).stderr
    assert "max_memory" in _process("plan", "10", "3", "--max-memory", "-1", code=2).stderr


# ---------------------------------------------------------------- processes
def _process(*arguments, code=0, cwd=None, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "selfdistill_fast", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        check=False,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_results_and_remarks_go_to_different_streams(csv, tmp_path):
    result = _process("fit", csv, "--json", "--save", "m.npz", cwd=tmp_path)
    assert json.loads(result.stdout)["n_train"] == 60
    assert "model written to m.npz" in result.stderr
    result = _process("fit", csv, "--lam", "-1", code=2)
    assert result.stdout == ""
    assert result.stderr == "error: --lam must be a positive number, got -1\n"
    assert _process("--version").stdout.strip()


def test_a_closed_pipe_is_no_error(csv, tmp_path):
    _process("fit", csv, "--save", "m.npz", cwd=tmp_path)
    big = tmp_path / "big.csv"
    pd.concat([pd.read_csv(csv)] * 2000).to_csv(big, index=False)
    command = f'"{sys.executable}" -m selfdistill_fast predict m.npz big.csv | head -n 1'
    result = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert result.stdout == "y\n"
    assert result.stderr == ""


def test_a_traceback_on_request(csv):
    broken = ("fit", csv, "--lam", "-1")
    result = CliRunner().invoke(app, ["--traceback", *map(str, broken)])
    assert result.exit_code == 2
    assert "Traceback" in result.output
    assert result.output.endswith("InputError: --lam must be a positive number, got -1\n")
    assert "Traceback" not in run(*broken, code=2)


def test_a_failed_report_leaves_the_old_file(csv, tmp_path, monkeypatch):
    report = tmp_path / "report.json"
    report.write_text("old", encoding="utf-8")

    def full(self, text, **_):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "no space left" in run("fit", csv, "--report", report, code=1)
    assert report.read_text(encoding="utf-8") == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.csv", "report.json"]


def test_an_ascii_terminal_is_no_error(csv):
    assert "training" in _process("fit", csv, PYTHONIOENCODING="ascii").stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_what_to_install(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name.startswith("selfdistill_fast.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("selfdistill_fast.cli", raising=False)
    for name in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert __main__.main() == 1
    printed = capsys.readouterr()
    assert "pip install 'selfdistill_fast[cli]'" in printed.err
    assert missing in printed.err


@pytest.mark.parametrize(
    ("missing", "arguments"), [("pandas", ["fit"]), ("matplotlib", ["fit", "--figure", "e.png"])]
)
def test_without_part_of_the_extra(missing, arguments, csv, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    output = run(arguments[0], csv, *arguments[1:], code=1)
    assert "pip install 'selfdistill_fast[cli]'" in output


# --------------------------------------------------------------------- data
def _uci(name):
    given = os.environ.get("SELFDISTILL_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = root / "uci" / name
    if not folder.is_dir():
        pytest.skip("no UCI data: set SELFDISTILL_DATA to the folder that holds uci/")
    return folder


@pytest.fixture(params=["concrete", "elevators"])
def uci(request, tmp_path):
    """Data file, mask option and arrays; the larger set cut to its first 1000 rows."""
    folder = _uci(request.param)
    data = read_table(folder / "data.csv.gz", header=False).frame
    mask = read_table(folder / "test_mask.csv.gz", header=False).frame
    data_file, mask_file = folder / "data.csv.gz", folder / "test_mask.csv.gz"
    if len(data) > 2000:
        data, mask = data[:1000], mask[:1000]
        data_file, mask_file = tmp_path / "data.csv.gz", tmp_path / "test_mask.csv.gz"
        data.to_csv(data_file, header=False, index=False)
        mask.to_csv(mask_file, header=False, index=False)
    held = mask[3].to_numpy() == 1
    values = data.to_numpy()
    mean, std = values[~held].mean(0), values[~held].std(0)
    std = np.where(std > 0, std, 1.0)
    scaled = (values - mean) / std
    X, y = scaled[:, :-1], scaled[:, -1]
    options = (data_file, "--test", f"{mask_file}:3", "--standardize", "--gamma", 0.1, "--lam", 0.5)
    return options, (X[~held], y[~held], X[held], y[held]), std[-1]


def test_uci_against_kernel_ridge(uci, tmp_path):
    options, (X, y, X_test, y_test), unit = uci

    def ridge(lam):
        model = KernelRidge(kernel="rbf", gamma=0.1, alpha=lam).fit(X, y)
        return unit * np.sqrt(np.mean((model.predict(X_test) - y_test) ** 2))

    results = fit(*options, tmp_path=tmp_path)
    errors = column(results, "test_rmse")
    assert errors.shape == (4,)
    assert np.isfinite(errors).all()
    np.testing.assert_allclose(errors[0], ridge(0.5), rtol=1e-10)

    results = fit(*options, "--alpha", 1, tmp_path=tmp_path)
    np.testing.assert_allclose(column(results, "test_rmse"), ridge(0.5), rtol=1e-10)

    results = fit(*options, "--alpha", 0.25, "--steps", 400, tmp_path=tmp_path)
    np.testing.assert_allclose(results["steps"][-1]["test_rmse"], ridge(2.0), rtol=1e-8)
    np.testing.assert_allclose(results["limit"]["test_rmse"], ridge(2.0), rtol=1e-10)
