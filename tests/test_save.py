"""Files: the same bits back, nothing executed, damage noticed, an old file never half replaced."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
from cases import KERNELS, kernel_id

from selfdistill_fast import RBF, SelfDistilledKernelRidge, distill, load, spectrum

pytestmark = pytest.mark.filterwarnings("ignore:joint weights:RuntimeWarning")

rng = np.random.default_rng(3)
X, Y, X_NEW = rng.standard_normal((9, 2)), rng.standard_normal((9, 3)), rng.standard_normal((4, 2))


def fit(kernel=None, alpha=0.3, *, X=X, Y=Y, backend=None, **options):
    return distill(spectrum(X, Y, kernel or RBF(0.5), backend=backend, **options), 0.1, alpha, 3)


def assert_same_model(path, back, X_new=X_NEW, *, limit=True):
    for step in (None, 1, 2, "all", *([math.inf] if limit else [])):
        expected, actual = path.predict(X_new, step=step), back.predict(X_new, step=step)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(back.alphas, path.alphas)
    np.testing.assert_array_equal(back.weights, path.weights)
    np.testing.assert_array_equal(back.shrinkage, path.shrinkage)
    np.testing.assert_array_equal(back.dual_coef(2), path.dual_coef(2))


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("targets", [Y, Y[:, 0]], ids=["3 targets", "1-D"])
def test_round_trip_gives_the_same_bits(backend, tmp_path, kernel, intercept, targets):
    path = fit(kernel, Y=targets, fit_intercept=intercept, backend=backend)
    path.save(tmp_path / "model.npz")
    assert_same_model(path, load(tmp_path / "model.npz", backend=backend))


def test_float32_weights_and_chosen_alphas(backend, tmp_path):
    weight = np.array([0, 1, 1, 2, 0.5, 1, 1, 0, 3.0])
    for alpha in ("optimal", "joint", [0.2, 1.7]):
        path = fit(
            alpha=alpha, X=X.astype(np.float32), Y=Y.astype(np.float32),
            sample_weight=weight, fit_intercept=True, backend=backend,
        )  # fmt: skip
        path.save(tmp_path / "model.npz")
        back = load(str(tmp_path / "model.npz"), backend=backend)
        assert_same_model(path, back, X_NEW.astype(np.float32), limit=False)
        with pytest.raises(ValueError, match="limit"):
            back.predict(X_NEW, step=math.inf)


def test_precomputed(tmp_path):
    K = np.exp(-np.square(X[:, None] - X).sum(-1))
    path = fit("precomputed", X=K)
    path.save(tmp_path / "model.npz")
    assert_same_model(path, load(tmp_path / "model.npz"), K[:4])


def test_per_target_alphas(tmp_path):
    s = spectrum(X, Y, RBF(0.5))
    path = distill(s, 0.1, "optimal", 3, per_target=True)
    path.save(tmp_path / "model.npz")
    assert_same_model(path, load(tmp_path / "model.npz"), limit=False)


def test_path_of_an_estimator(tmp_path):
    model = SelfDistilledKernelRidge(n_steps=3).fit(X, Y)
    model.path_.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(load(tmp_path / "model.npz").predict(X_NEW), model.predict(X_NEW))


def test_the_file_is_arrays_and_a_json_header(tmp_path):
    fit().save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(_header(arrays)[1])
    assert header["version"] == 1
    assert header["kernel"]["name"] == "rbf"


def _header(arrays):
    """Name and text of the member that holds JSON."""
    for name, array in arrays.items():
        if array.dtype == np.uint8 or array.dtype.kind == "U":
            text = array.tobytes().decode() if array.dtype == np.uint8 else str(array)
            return name, text
    raise AssertionError("no header")


def test_a_callable_kernel_cannot_be_saved(tmp_path):
    path = fit(lambda A, B: A @ B.T + 1)
    with pytest.raises((TypeError, ValueError), match=r"callable|function"):
        path.save(tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ files that are not models


def test_missing_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "no such file")
    with pytest.raises(OSError, match="irectory"):
        load(tmp_path)


def test_truncated_anywhere(tmp_path):
    fit().save(tmp_path / "model.npz")
    whole = (tmp_path / "model.npz").read_bytes()
    for end in {
        *range(0, len(whole), max(1, len(whole) // 60)),
        *range(len(whole) - 30, len(whole)),
    }:
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="cut"):
            load(tmp_path / "cut")


def test_a_changed_byte_is_noticed_or_harmless(tmp_path):
    """Zip's checksums cover the data; what they do not cover must not change the model."""
    path = fit()
    path.save(tmp_path / "model.npz")
    whole = bytearray((tmp_path / "model.npz").read_bytes())
    noticed = 0
    # everywhere a little, and every byte of the directory's end, which no checksum covers
    for i in [*range(0, len(whole), 13), *range(len(whole) - 100, len(whole))]:
        damaged = bytearray(whole)
        damaged[i] ^= 0x55
        (tmp_path / "bad").write_bytes(damaged)
        try:
            back = load(tmp_path / "bad")
        except ValueError as error:
            noticed += "bad" in str(error)  # it names the file
        else:
            assert_same_model(path, back)
    assert noticed > len(whole) // 13 // 2


def _rewrite(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def test_foreign_files(tmp_path):
    target = tmp_path / "foreign"
    contents = [b"", b"\0" * 1000, b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"{}" * 50]
    for content in contents:
        target.write_bytes(content)
        with pytest.raises(ValueError, match="foreign"):
            load(target)
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(ValueError, match="one"):
        load(tmp_path / "one.npy")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("notes.txt", "not arrays")
    with pytest.raises(ValueError, match="foreign"):
        load(target)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("header.npy", "not an array")
    with pytest.raises(ValueError, match="foreign"):
        load(target)
    for arrays in ({"a": X}, {"header": X}, {"header": np.array("[]")}, {}):
        _rewrite(target, arrays)
        with pytest.raises(ValueError, match="foreign"):
            load(target)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_are_refused_and_not_executed(tmp_path):
    trap = Trap(tmp_path / "sprung")
    fit().save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    target = tmp_path / "pickled"
    target.write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="pickled"):
        load(target)
    for name in arrays:
        _rewrite(target, {**arrays, name: np.array([trap], dtype=object)})
        with pytest.raises(ValueError, match="pickled"):
            load(target)
    _rewrite(target, {**arrays, "extra": np.array([trap], dtype=object)})
    with pytest.raises(ValueError, match="pickled"):
        load(target)
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_says_something_else(tmp_path):
    fit().save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    name, text = _header(arrays)
    header = json.loads(text)
    for change, match in (
        ({"version": 2}, "version 2"),
        ({"version": "1"}, "version"),
        ({"version": None}, "version"),
        ({"format": "somebody.else"}, "format|model"),
        ({"kernel": {"name": "rbf"}}, "edited"),
        ({"kernel": {"name": "rbf", "gamma": -1.0}}, "edited"),
        ({"kernel": {"name": "unheard of"}}, "edited"),
        ({"kernel": "rbf"}, "edited"),
        ({"lam": "much"}, "edited"),
        ({"lam": -1.0}, "edited"),
        ({"lam": None}, "edited"),
        ({"lam_steps": ["a", "b", "c"]}, "edited"),
        ({"lam_steps": [0.1]}, "edited"),
        ({"default_step": 9}, "edited"),
        ({"default_step": 0}, "edited"),
        ({"default_step": True}, "edited"),
        ({"default_step": "last"}, "edited"),
    ):
        text = json.dumps({**header, **change}).encode()
        _rewrite(tmp_path / "edited", {**arrays, name: np.frombuffer(text, np.uint8)})
        with pytest.raises(ValueError, match=match):
            load(tmp_path / "edited")
    for missing in header:
        if missing in ("package_version", "metadata", "default_step"):
            continue
        text = json.dumps({k: v for k, v in header.items() if k != missing}).encode()
        _rewrite(tmp_path / "edited", {**arrays, name: np.frombuffer(text, np.uint8)})
        with pytest.raises(ValueError, match="edited"):
            load(tmp_path / "edited")


def test_arrays_that_are_missing_or_do_not_belong_together(tmp_path):
    fit().save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    name, _ = _header(arrays)
    for key, array in arrays.items():
        if key == name:
            continue
        variants = [{**arrays, key: array[None]}]
        if key != "shrinkage":  # a Cholesky factor has no eigenvalues to tell it from
            variants.append({k: v for k, v in arrays.items() if k != key})
        if len(array) > 1:
            variants.append({**arrays, key: array[:-1]})
        variants += [{**arrays, key: np.array(["x"] * 3)}, {**arrays, key: array.astype(str)}]
        for variant in variants:
            _rewrite(tmp_path / "edited", variant)
            with pytest.raises(ValueError, match="edited"):
                load(tmp_path / "edited")


@pytest.mark.parametrize("error", [MemoryError("1 EiB"), PermissionError(13, "not yours")])
def test_an_error_that_is_not_about_the_content_is_not_damage(tmp_path, monkeypatch, error):
    fit().save(tmp_path / "model.npz")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(type(error)) as caught:
        load(tmp_path / "model.npz")
    assert caught.value is error


# ------------------------------------------------------------------ writing


def test_an_existing_file_is_replaced(tmp_path):
    target = tmp_path / "model.npz"
    fit(alpha=0.9).save(target)
    path = fit(alpha=0.1)
    path.save(target)
    assert_same_model(path, load(target))
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "savez"])
def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, failing):
    old = fit(alpha=0.9)
    old.save(tmp_path / "model.npz")

    def fail(*arguments, **_):
        if failing == "savez":
            arguments[0].write(b"PK half a file")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np if failing == "savez" else os, failing, fail)
        with pytest.raises(OSError, match="no space"):
            fit(alpha=0.1).save(tmp_path / "model.npz")
    assert_same_model(old, load(tmp_path / "model.npz"))
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        fit().save(tmp_path / "nowhere" / "model.npz")


@pytest.mark.skipif(not hasattr(os, "umask"), reason="no umask on this system")
def test_the_file_has_the_permissions_of_an_ordinary_new_file(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    fit().save(tmp_path / "model.npz")
    modes = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert modes["model.npz"] == modes["ordinary"]


def test_the_default_step_is_saved(tmp_path):
    path = fit()
    path.default_step = 2
    path.save(tmp_path / "model.npz")
    again = load(tmp_path / "model.npz")
    X = np.random.default_rng(1).normal(size=(4, again.n_features_in))
    np.testing.assert_array_equal(again.predict(X), path.predict(X, step=2))
    np.testing.assert_array_equal(again.dual_coef(), path.dual_coef(2))
    np.testing.assert_array_equal(again.predict(X, step="last"), path.predict(X, step=path.n_steps))


def test_a_file_of_an_earlier_version_predicts_by_its_last_step(tmp_path):
    path = fit()
    path.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    name, text = _header(arrays)
    older = {k: v for k, v in json.loads(text).items() if k != "default_step"}
    _rewrite(
        tmp_path / "old", {**arrays, name: np.frombuffer(json.dumps(older).encode(), np.uint8)}
    )
    assert load(tmp_path / "old").default_step == path.n_steps
