"""Tables that were read wrongly without a word: now read rightly, or refused with the cure."""

from __future__ import annotations

import json

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("typer")

from typer.testing import CliRunner  # noqa: E402

from selfdistill_fast import cli  # noqa: E402
from selfdistill_fast.cli.dataset import Layout, Scaling  # noqa: E402
from selfdistill_fast.cli.dataset import Rows as DataRows  # noqa: E402
from selfdistill_fast.cli.tables import TableError, read_table  # noqa: E402


def draw(rng, n=30, d=3):
    X = rng.normal(size=(n, d))
    return X, X[:, 0] + 0.1 * rng.normal(size=n)


def fit(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["fit", *map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.output


# ------------------------------------------------------------------ names that are numbers


@pytest.mark.parametrize(
    "names",
    [range(4), range(1, 5), [0.0, 1.0, 2.0, 3.0], range(2001, 2005)],
    ids=["0…", "1…", "0.0…", "years"],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv"])
def test_consecutive_numbers_above_measurements_are_names(names, suffix, rng, tmp_path, capsys):
    X, y = draw(rng)
    file = tmp_path / f"data{suffix}"
    frame = pd.DataFrame(np.c_[X, y], columns=list(names))
    frame.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    table = read_table(file)
    assert len(table) == 30
    assert table.names == [str(name) for name in names]
    assert "was taken as names; use --no-header if it is data" in capsys.readouterr().err
    assert len(read_table(file, header=False)) == 31


def test_consecutive_names_above_whole_numbers(rng, tmp_path, capsys):
    file = tmp_path / "pixels.csv"
    pd.DataFrame(rng.integers(0, 16, size=(20, 5))).to_csv(file, index=False)
    assert len(read_table(file)) == 20
    capsys.readouterr()
    pd.DataFrame(rng.integers(0, 9, (20, 2)), columns=[2001, 2002]).to_csv(file, index=False)
    assert len(read_table(file)) == 21  # which of both it is cannot be known
    assert "was taken as data; use --header if it holds names" in capsys.readouterr().err


def test_other_numbers_are_data_without_a_word(rng, tmp_path, capsys):
    file = tmp_path / "data.csv"
    for first in ([0.3, 1.0, 7.0], [1, 3, 5], [5, 4, 3]):
        pd.DataFrame([first, *rng.normal(size=(4, 3))]).to_csv(file, index=False, header=False)
        assert len(read_table(file)) == 5
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------ the index


@pytest.mark.parametrize("order", ["as it was", "shuffled", "a part"])
def test_the_numbers_of_rows_are_no_feature(order, rng, tmp_path, capsys):
    X, y = draw(rng)
    frame = pd.DataFrame(np.c_[X, y], columns=["a", "b", "c", "y"])
    if order != "as it was":
        frame = frame.iloc[rng.permutation(30)[: 30 if order == "shuffled" else 20]]
    frame.to_csv(tmp_path / "indexed.csv")
    frame.to_csv(tmp_path / "plain.csv", index=False)
    indexed, plain = (
        fit(tmp_path / f"{name}.csv", "--target", "y") for name in ("indexed", "plain")
    )
    assert indexed["n_features"] == 3
    assert indexed["steps"] == plain["steps"]
    read_table(tmp_path / "indexed.csv")
    assert "has no name and seems to number the rows; it is left out" in capsys.readouterr().err


def test_an_unnamed_column_of_measurements_is_a_feature(rng, tmp_path):
    X, y = draw(rng)
    frame = pd.DataFrame(np.c_[X, y], columns=["", "b", "c", "y"])
    frame.to_csv(tmp_path / "data.csv", index=False)
    assert fit(tmp_path / "data.csv", "--target", "y")["n_features"] == 3


def test_an_index_in_parquet(rng, tmp_path):
    pytest.importorskip("pyarrow")
    X, y = draw(rng)
    frame = pd.DataFrame(X, columns=["a", "b", "c"], index=pd.Index(y, name="y"))
    frame.to_parquet(tmp_path / "named.parquet")
    assert fit(tmp_path / "named.parquet", "--target", "y")["n_features"] == 3
    shuffled = pd.DataFrame(np.c_[X, y], columns=["a", "b", "c", "y"]).iloc[rng.permutation(30)]
    shuffled.to_parquet(tmp_path / "shuffled.parquet")
    assert fit(tmp_path / "shuffled.parquet", "--target", "y")["n_features"] == 3


# ------------------------------------------------------------------ names twice


@pytest.mark.parametrize("separator", [",", ";", " "])
def test_names_that_occur_twice(separator, tmp_path):
    file = tmp_path / "data.csv"
    lines = ["x,x,y", "1,2,3", "2,1,4", "3,5,6", "4,4,4"]
    file.write_text("\n".join(lines).replace(",", separator), encoding="utf-8")
    table = read_table(file)
    assert table.names == ["x", "x", "y"]
    with pytest.raises(TableError, match=r"columns 0 and 1 are both named 'x'.*--drop 0"):
        Layout.choose(table, ["y"], None, [])
    with pytest.raises(TableError, match=r"2 columns named 'x', numbers 0, 1"):
        Layout.choose(table, ["y"], None, ["x"])
    assert Layout.choose(table, ["y"], None, ["1"]).features == [0]


# ------------------------------------------------------------------ scaling


def test_a_constant_column_is_constant():
    X = np.c_[np.full(300, 0.1), np.linspace(0, 1, 300)]
    scaling = Scaling.of(DataRows(X, X[:, 1:], None), wanted=True)
    assert scaling.x_std[0] == 1.0
    assert abs(scaling.features(np.array([[0.1001, 0.5]]))[0, 0]) < 1e-3


def test_rows_of_weight_zero_do_not_scale(rng):
    X, y = draw(rng)
    w = rng.uniform(0.5, 2.0, 30)
    X[3], w[3] = 1e6, 0.0
    ours = Scaling.of(DataRows(X, y[:, None], w), wanted=True)
    kept = w > 0
    without = Scaling.of(DataRows(X[kept], y[kept, None], w[kept]), wanted=True)
    np.testing.assert_allclose(ours.x_mean, without.x_mean, rtol=1e-12)
    np.testing.assert_allclose(ours.x_std, without.x_std, rtol=1e-12)
    np.testing.assert_allclose(ours.y_std, without.y_std, rtol=1e-12)


# ------------------------------------------------------------------ cells


def test_integers_that_would_be_rounded(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"id": [2**53 + 1, 2**53 + 3, 5], "x": [1.0, 2.0, 3.0]})
    frame.to_parquet(tmp_path / "ids.parquet")
    frame.to_csv(tmp_path / "ids.csv", index=False)
    for name in ("ids.parquet", "ids.csv"):
        with pytest.raises(TableError, match=r"column 'id', row 1: 9007199254740993 is an integer"):
            read_table(tmp_path / name).array([0])
    even = pd.DataFrame({"big": [2**60, 2**54]})
    even.to_parquet(tmp_path / "even.parquet")
    np.testing.assert_array_equal(
        read_table(tmp_path / "even.parquet").array([0])[:, 0], [2.0**60, 2.0**54]
    )


@pytest.mark.parametrize("cell", [[1.0, 2.0], {"a": 1}])
def test_cells_that_hold_several_values(cell, tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"v": [cell, cell], "x": [1.0, 2.0]}).to_parquet(tmp_path / "nested.parquet")
    with pytest.raises(TableError, match=r"column 'v' holds a \w+ in each row, not a number"):
        read_table(tmp_path / "nested.parquet").array([0])


# ------------------------------------------------------------------ found by review


@pytest.mark.parametrize(
    ("text", "rows", "names"),
    [
        ("0.5,1.5\n0.3,0.7\n", 2, ["0", "1"]),
        ("5,6\n7,\n8,9\n", 3, ["0", "1"]),
        ("1,2\n", 1, ["0", "1"]),
        ("1,2,3\n", 1, ["0", "1", "2"]),
        (",0,1,2\n0,1.5,2,3\n1,2.5,3,4\n", 2, None),
        ("my col\n1\n2\n", 2, ["my col"]),
        ("a b c\n1 2 3\n4 5 6\n", 2, ["a", "b", "c"]),
    ],
)
def test_first_lines(text, rows, names, tmp_path):
    file = tmp_path / "data.csv"
    file.write_text(text, encoding="utf-8")
    table = read_table(file)
    assert len(table) == rows
    if names is None:
        assert table.names[1:] == ["0", "1", "2"]
        assert table.counts == 0
    else:
        assert table.names == names


def test_an_unnamed_column_of_other_whole_numbers_is_a_feature(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text("y,,x\n1,100,3\n2,7,4\n", encoding="utf-8")
    assert read_table(file).counts is None


@pytest.mark.parametrize("cell", ["9007199254740993", "99999999999999999999999"])
def test_integers_that_are_rounded_beside_other_numbers(cell, tmp_path):
    file = tmp_path / "data.csv"
    file.write_text(f"a,b\n{cell},1\n0.5,2\n", encoding="utf-8")
    with pytest.raises(TableError, match=f"row 1: {cell} is an integer beyond"):
        read_table(file).array([0])
    file.write_text("a,b\n9007199254740993.0,1\n1e300,2\n", encoding="utf-8")
    assert read_table(file).array([0])[1, 0] == 1e300
