"""The trainer: one fit against a plain loop, the chain against eq. (16) and the exact engine."""

from __future__ import annotations

import csv
import errno
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import Dataset, Subset, TensorDataset  # noqa: E402

from selfdistill_fast import Linear, distill, optimal_alpha, spectrum  # noqa: E402
from selfdistill_fast.trainer import (  # noqa: E402
    CropFlip,
    ImageSet,
    SelfDistillation,
    checkpoint,
    experiment,
    load_cifar10,
    load_digits,
    load_folder,
    step_seed,
)
from selfdistill_fast.trainer.models import model_factory  # noqa: E402
from selfdistill_fast.trainer.settings import derive  # noqa: E402

cnn = model_factory("cnn", n_classes=10, n_channels=1)


@pytest.fixture(scope="module")
def digits():
    """300 and 150 digits as arrays."""
    train, val = load_digits()
    cut = [(data.tensors[0][:n], data.tensors[1][:n]) for data, n in ((train, 300), (val, 150))]
    return tuple((x.numpy(), y.numpy()) for x, y in cut)


def chain(digits, model=cnn, **options):
    options = {"n_steps": 2, "epochs": 2, "batch_size": 64, "lr": 3e-3, "lam": 0.01} | options
    return SelfDistillation(model, device="cpu", **options).fit(*digits)


def linear(n_features=64, n_outputs=10, bias=False):
    return nn.Sequential(nn.Flatten(), nn.Linear(n_features, n_outputs, bias=bias))


def same(a, b):
    """Two state dicts, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------ the chain
@pytest.fixture(scope="module")
def three_steps(digits):
    return chain(digits, n_steps=3, epochs=6)


def test_alpha_is_equation_16_of_the_saved_predictions(digits, three_steps):
    """⟨ỹ_{α=0} − ỹ⁽¹⁾, ỹ − ỹ⁽¹⟩ / ‖ỹ_{α=0} − ỹ⁽¹⁾‖², summed over rows and classes."""
    Y = np.eye(10)[digits[1][1]]
    fits = three_steps.fits_
    assert [(f.step, f.role) for f in fits] == [
        (1, "step"),
        (2, "student"),
        (2, "step"),
        (3, "student"),
        (3, "step"),
    ]
    assert three_steps.n_fits_ == 2 * (3 - 1) + 1
    first = fits[0].val_predictions.astype(np.float64)
    for t, student in ((2, fits[1]), (3, fits[3])):
        change = student.val_predictions.astype(np.float64) - first
        alpha = 1 - np.sum(change * (Y - first)) / np.sum(change**2)
        np.testing.assert_allclose(three_steps.alphas_[t - 1], alpha, rtol=1e-12)
        assert fits[2 * t - 2].alpha == three_steps.alphas_[t - 1]
        assert student.alpha == 0.0
        assert not student.state
    assert math.isnan(three_steps.alphas_[0])


def test_the_chain_learns_and_its_records_are_those_of_its_predictions(digits, three_steps):
    for data, which in zip(digits, ("train", "val"), strict=True):
        X, labels = data
        Y = np.eye(10)[labels]
        every = three_steps.predict(X, step="all")
        assert every.shape == (3, len(X), 10)
        np.testing.assert_allclose(every.sum(2), 1, rtol=1e-5)
        for f, record in zip(every, three_steps.steps_, strict=True):
            np.testing.assert_array_equal(f, getattr(record, f"{which}_predictions"))
            accuracy = np.mean(f.argmax(1) == labels)
            np.testing.assert_allclose(getattr(record, f"{which}_accuracy"), accuracy)
            loss = 0.5 * np.sum((f - Y) ** 2, axis=1).mean()
            np.testing.assert_allclose(getattr(record, f"{which}_loss"), loss, rtol=1e-5)
            assert accuracy > 0.7
    np.testing.assert_array_equal(three_steps.predict(X), every[2])
    for record in three_steps.steps_:
        assert [row["epoch"] for row in record.history] == list(range(1, 7))
        assert record.history[-1]["val_accuracy"] == record.val_accuracy
        assert record.images_per_second > 0


def test_the_first_step_is_the_same_for_every_alpha(digits, three_steps):
    other = chain(digits, n_steps=2, epochs=6, alpha=0.3)
    assert same(other.steps_[0].state, three_steps.steps_[0].state)
    assert other.n_fits_ == 2
    shared = SelfDistillation(
        cnn, n_steps=2, epochs=6, batch_size=64, lr=3e-3, lam=0.01, alpha=0.3, device="cpu"
    ).fit(*digits, first=three_steps)
    assert shared.steps_[0] is three_steps.steps_[0]
    assert same(other.steps_[1].state, shared.steps_[1].state)
    again = {"n_steps": 2, "epochs": 6, "batch_size": 64, "lr": 3e-3, "lam": 0.01, "alpha": 0.3}
    with pytest.raises(ValueError, match="fitted on other data"):
        SelfDistillation(cnn, **again, device="cpu").fit(
            (digits[0][0] * 0.5, digits[0][1]), digits[1], first=three_steps
        )
    with pytest.raises(ValueError, match=r"epochs 6 there, 2 here"):
        SelfDistillation(
            cnn, n_steps=2, epochs=2, batch_size=64, lr=3e-3, lam=0.01, alpha=0.3, device="cpu"
        ).fit(*digits, first=three_steps)


def test_alphas_are_numbers_a_sequence_or_clipped(digits, monkeypatch):
    assert chain(digits, alpha=[0.2, 0.7], n_steps=3, epochs=1).alphas_[1:].tolist() == [0.2, 0.7]
    for estimate, kept in ((1.7, 1.0), (-0.4, 0.0), (0.4, 0.4)):
        monkeypatch.setattr(
            "selfdistill_fast.trainer.chain.optimal_alpha", lambda *_, e=estimate: e
        )
        assert chain(digits, clip=True, epochs=1).alphas_[1] == kept
        assert chain(digits, epochs=1).alphas_[1] == estimate


# ------------------------------------------------------------------ one fit
def plain_training(X, labels, *, seed, epochs=2, batch_size=64, lr=3e-3):
    """What anyone would write, without a word of this package but its seeds."""
    torch.manual_seed(seed)
    model = cnn()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    X, Y = torch.from_numpy(X), functional.one_hot(torch.from_numpy(labels), 10).float()
    for epoch in range(1, epochs + 1):
        order = torch.Generator().manual_seed(derive(seed, epoch, 0))
        for rows in torch.randperm(len(X), generator=order).split(batch_size):
            optimizer.zero_grad()
            f = model(X[rows]).softmax(1)
            (0.5 * (f - Y[rows]).square().sum() / len(rows)).backward()
            optimizer.step()
    return model.state_dict()


def test_alpha_one_is_plain_training_bit_for_bit(digits):
    one = chain(digits, alpha=1.0, lam=0.0)
    for step in (1, 2):
        seed = step_seed(0, step)
        assert same(one.steps_[step - 1].state, plain_training(*digits[0], seed=seed))
        alone = chain(digits, n_steps=1, seed=seed, lam=0.0)
        assert same(one.steps_[step - 1].state, alone.steps_[0].state)
    assert not same(one.steps_[0].state, one.steps_[1].state)


def test_the_loss_is_equation_18(digits):
    """The first batch of step 2, full batch: α, teacher, penalty over n."""
    X, labels = digits[0]
    alpha, lam = 0.3, 5.0
    two = chain(digits, alpha=alpha, lam=lam, epochs=1, batch_size=300)
    Y, T = np.eye(10)[labels], two.steps_[0].train_predictions
    torch.manual_seed(step_seed(0, 2))
    model = cnn()
    f = model(torch.from_numpy(X)).softmax(1).detach().numpy()
    theta = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    value = alpha / 2 * np.sum((f - Y) ** 2) + (1 - alpha) / 2 * np.sum((f - T) ** 2)
    expected = (value + lam / 2 * theta) / len(X)
    np.testing.assert_allclose(two.steps_[1].history[0]["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", ["optimal", 0.3])
def test_a_linear_network_is_the_linear_kernel_chain(alpha, rng):
    """Trained to convergence: predictions of every step and α̂ are those of the exact engine."""
    X, Z = rng.normal(size=(40, 6)), rng.normal(size=(25, 6))
    W = rng.normal(size=(6, 3))
    Y = X @ W + 0.5 * rng.normal(size=(40, 3))
    Y_val = Z @ W + 0.5 * rng.normal(size=(25, 3))
    lam, steps = 4.0, 3
    exact = distill(spectrum(X, Y, Linear()), lam, alpha, steps, X_val=Z, y_val=Y_val)
    network = SelfDistillation(
        partial(linear, 6, 3),
        alpha=alpha,
        n_steps=steps,
        output="identity",
        optimizer=partial(
            torch.optim.LBFGS,
            max_iter=200,
            tolerance_grad=1e-12,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        ),
        epochs=2,
        batch_size=40,
        lam=lam,
        precision="float64",
        device="cpu",
    ).fit((X, Y), (Z, Y_val))
    np.testing.assert_allclose(network.alphas_, exact.alphas, atol=1e-6)
    for points in (X, Z):
        np.testing.assert_allclose(
            network.predict(points, step="all"), exact.predict(points, step="all"), atol=1e-6
        )


def test_gradient_descent_reaches_it_too_in_single_precision(rng):
    X, Z = rng.normal(size=(40, 4)), rng.normal(size=(25, 4))
    y, y_val = np.sin(X[:, 0]) + X[:, 1], np.sin(Z[:, 0]) + Z[:, 1]
    exact = distill(spectrum(X, y, Linear()), 3.0, "optimal", 3, X_val=Z, y_val=y_val)
    network = SelfDistillation(
        partial(linear, 4, 1),
        n_steps=3,
        output="identity",
        optimizer=partial(torch.optim.SGD, lr=0.3, momentum=0.8),
        epochs=300,
        batch_size=40,
        lam=3.0,
        device="cpu",
    ).fit((X, y), (Z, y_val))
    assert network.predict(Z).shape == (25,)
    np.testing.assert_allclose(network.alphas_, exact.alphas, atol=1e-4)
    np.testing.assert_allclose(network.predict(Z, "all"), exact.predict(Z, "all"), atol=1e-4)


def test_cached_teacher_is_the_augmented_one_where_nothing_is_augmented(digits):
    runs = [
        chain(digits, alpha=0.2, teacher=teacher, precision="float64")
        for teacher in ("augmented", "cached")
    ]
    np.testing.assert_allclose(*(run.predict(digits[1][0]) for run in runs), rtol=1e-9)


def test_teacher_sees_the_augmented_batch(digits):
    """α = 0 and inputs augmented to a constant: every target is the teacher's one answer."""
    seen = []

    def blank(x, generator):
        seen.append(x.shape)
        return torch.zeros_like(x)

    blind = chain(digits, alpha=0.0, augment=blank, epochs=20, lam=0.0, lr=0.02, model=linear_bias)
    nothing = np.zeros((1, 1, 8, 8), dtype=np.float32)
    first, second = blind.predict(nothing, "all")
    np.testing.assert_allclose(first, second, atol=2e-3)
    assert seen[0] == (64, 1, 8, 8)


linear_bias = partial(linear, bias=True)


def test_labels_as_numbers_and_a_loss_of_ones_own(digits):
    """output="identity" with several outputs: labels are one-hot numbers."""
    one_hot = [(X, np.eye(10, dtype=np.float32)[y]) for X, y in digits]
    options = {"output": "identity", "model": linear_bias, "epochs": 10, "lr": 0.02}
    by_label, by_number = chain(digits, **options), chain(one_hot, **options)
    assert same(by_label.steps_[1].state, by_number.steps_[1].state)
    assert by_label.steps_[0].val_accuracy > 0.5
    assert math.isnan(by_number.steps_[0].val_accuracy)

    def halved(f, y):
        return 0.25 * (f - y).square().sum(1)

    own = chain(digits, loss=halved, n_steps=1)
    np.testing.assert_allclose(own.steps_[0].val_loss, halved_loss(own, digits[1]), rtol=1e-5)


def test_one_hot_targets_are_classes_under_a_softmax(digits):
    one_hot = [(X, np.eye(10)[y]) for X, y in digits]
    by_label, by_row = chain(digits), chain(one_hot)
    assert same(by_label.steps_[1].state, by_row.steps_[1].state)
    assert by_label.steps_[1].val_accuracy == by_row.steps_[1].val_accuracy
    assert by_label.alphas_[1] == by_row.alphas_[1]


def halved_loss(fitted, data):
    return 0.25 * np.sum((fitted.predict(data[0]) - np.eye(10)[data[1]]) ** 2, 1).mean()


def test_bf16_forward_passes_are_close_to_single_precision(digits):
    runs = [chain(digits, alpha=0.3, precision=p, epochs=4) for p in ("float32", "bf16")]
    single, half = (run.predict(digits[1][0]) for run in runs)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - single).max() < 0.1
    assert all(v.dtype == torch.float32 for v in runs[1].steps_[1].state.values())


# ------------------------------------------------------------------ data of any kind
class Pairs(Dataset):
    """A data set that is no tensor."""

    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i], int(self.y[i])


def test_every_kind_of_data_gives_the_same_network(digits):
    (X, y), (Z, w) = digits
    expected = chain(digits).steps_[1].state
    tensors = [TensorDataset(torch.from_numpy(a), torch.from_numpy(b)) for a, b in digits]
    padded = TensorDataset(torch.from_numpy(np.concatenate([Z, X])), torch.tensor([*w, *y]))
    subset = Subset(Subset(padded, range(100, 450)), range(50, 350))
    for train, val in (
        tensors,
        (Pairs(X, y), Pairs(Z, w)),
        (subset, tensors[1]),
        ((torch.from_numpy(X), y.tolist()), (Z.astype(np.float64), w.astype(np.uint8))),
    ):
        assert same(chain((train, val)).steps_[1].state, expected)
    pairs = chain((Pairs(X, y), Pairs(Z, w)))
    np.testing.assert_array_equal(pairs.predict(Pairs(Z, w)), pairs.predict(Z))


def test_bytes_are_seen_as_fractions_and_image_sets_normalised(digits):
    images = (digits[0][0][:, 0] * 255).astype(np.uint8)
    labels, exact = digits[0][1], {"n_steps": 1, "precision": "float64"}
    raw, fractions = images[:, None], images[:, None] / 255
    as_bytes, as_floats = (chain(((x, labels), None), **exact) for x in (raw, fractions))
    np.testing.assert_allclose(as_bytes.predict(raw), as_floats.predict(fractions), rtol=1e-9)

    data = ImageSet(images[..., None], labels, list("0123456789"), [0.5], [0.25])
    by_set = chain((data, data.take(range(50))), **exact)
    by_hand = chain((((fractions - 0.5) / 0.25, labels), None), **exact)
    ours, theirs = (run.steps_[0].train_predictions for run in (by_set, by_hand))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    # raw bytes are normalised like the training set, and so are its single items
    np.testing.assert_array_equal(by_set.predict(data), by_set.predict(raw))
    np.testing.assert_allclose(data[3][0], (fractions[3] - 0.5) / 0.25, rtol=1e-5)


def test_crop_and_flip_are_those_of_torchvision():
    """Each image is one of the (2p + 1)² crops of the padded one, or its mirror image."""
    x = torch.arange(1, 1 + 200 * 3 * 5 * 4).reshape(200, 3, 5, 4)
    y = CropFlip(padding=1)(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    found = set()
    for before, after in zip(x, y, strict=True):
        padded = functional.pad(before, (1, 1, 1, 1))
        crops = {
            (top, left, flip): torch.flip(c, [2]) if flip else c
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
            for c in [padded[:, top : top + 5, left : left + 4]]
        }
        hits = [key for key, crop in crops.items() if torch.equal(crop, after)]
        assert len(hits) == 1
        found |= set(hits)
    assert len(found) == 18
    still = CropFlip(padding=0, flip=False)(x, torch.Generator().manual_seed(0))
    assert torch.equal(still, x)


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, np.where(y == 3, 10, y)), r"labels out of range.*0 to 9; found 10"),
        (lambda X, y: (X, np.where(y == 3, -1, y)), "labels out of range.*found -1"),
        (lambda X, y: (X[:-1], y), "299 inputs and targets of shape"),
        (lambda X, y: (X[:, 0, 0, :3], y), r"those of the training set \(3,\)"),
        (lambda X, y: (X[:0], y[:0]), "training set is empty"),
        (lambda X, y: (np.where(X == 1, np.nan, X), y), "training set contain NaN"),
        (lambda X, y: (X, y + 0.5), "10 output.*1 column"),
        (lambda X, y: (X, np.full((300, 10), np.inf)), "targets of the training set contain NaN"),
    ],
)
def test_bad_training_data(change, message, digits):
    with pytest.raises(ValueError, match=message):
        chain((change(*digits[0]), digits[1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X[:0], y[:0]), "validation set is empty"),
        (lambda X, y: (X[:, :, :7], y), r"validation set have shape \(1, 7, 8\).*\(1, 8, 8\)"),
        (lambda X, y: (X, np.where(y == 3, 12, y)), r"labels out of range.*found 12"),
        (lambda X, y: (X, np.eye(10)[y]), "must both be labels"),
    ],
)
def test_bad_validation_data(change, message, digits):
    with pytest.raises(ValueError, match=message):
        chain((digits[0], change(*digits[1])))


class Flow(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


def test_data_that_are_no_data(digits):
    for data in (digits[0][0], "digits", 3, None, [1, 2, 3]):
        with pytest.raises(TypeError, match="training set must be"):
            chain((data, digits[1]))
    with pytest.raises(ValueError, match="give val"):
        chain((digits[0], None))
    with pytest.raises(TypeError, match="IterableDataset"):
        chain((Flow(), digits[1]))
    bad = Pairs(digits[0][0], np.where(digits[0][1] == 3, 12, digits[0][1]))
    with pytest.raises(ValueError, match="labels of the training set out of range"):
        chain((bad, Pairs(*digits[1])))
    with pytest.raises(ValueError, match=r"uint8 of shape \(n, H, W, C\)"):
        ImageSet(np.zeros((2, 3, 8)), [0, 1], "ab", [0], [1])
    with pytest.raises(ValueError, match="labels out of range"):
        ImageSet(np.zeros((2, 8, 8, 1), np.uint8), [0, 2], "ab", [0], [1])


@pytest.mark.parametrize("width", [7, 12])
def test_a_model_of_the_wrong_width(width, digits):
    message = "labels out of range: the model has 7" if width == 7 else "12 output.* 10 classes"
    with pytest.raises(ValueError, match=message):
        chain(digits, model=partial(linear, 64, width))
    regression = [(X, y.astype(float)) for X, y in digits]
    with pytest.raises(ValueError, match=rf"{width} output.* 1 column"):
        chain(regression, model=partial(linear, 64, width), output="identity")


def test_classes_that_do_not_occur(digits):
    few = [(X, np.minimum(y, 7)) for X, y in digits]
    with pytest.raises(ValueError, match=r"10 output\(s\), but there are 8 classes.*n_classes"):
        chain(few)
    assert chain(few, n_classes=10, n_steps=1, epochs=1).n_outputs_ == 10


def test_inputs_that_the_model_does_not_take(digits):
    flat = [(X.reshape(len(X), 64), y) for X, y in digits]
    with pytest.raises(ValueError, match=r"does not accept inputs of shape \(64,\)"):
        chain(flat)
    with pytest.raises(ValueError, match=r"must return \(b, p\)"):
        chain(digits, model=lambda: nn.Conv2d(1, 10, 3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": "joint"}, ValueError, "alpha must be 'optimal', a number or a sequence"),
        ({"alpha": [0.1, 0.2]}, ValueError, "expected 1 alphas"),
        ({"alpha": math.nan}, ValueError, "finite"),
        ({"n_steps": 0}, ValueError, "n_steps must be a positive integer"),
        ({"epochs": 1.5}, ValueError, "epochs must be a positive integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"lam": -1.0}, ValueError, "lam must be a non-negative number"),
        ({"lr": 0.0}, ValueError, "lr must be a positive number"),
        ({"output": "sigmoid"}, ValueError, "output must be one of 'softmax', 'identity'"),
        ({"teacher": "frozen"}, ValueError, "teacher must be one of"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
        ({"optimizer": "lion"}, ValueError, "optimizer must be 'adam' or 'sgd' or a callable"),
        ({"loss": "hinge"}, ValueError, "loss must be 'squared' or a callable"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"model": nn.Linear(64, 10)}, TypeError, "model_fn must be a function"),
        ({"model": lambda: 3}, TypeError, "model_fn must return a torch.nn.Module"),
        ({"augment": "flip"}, TypeError, "augment must be a callable"),
    ],
)
def test_bad_parameters(options, error, message, digits):
    with pytest.raises(error, match=message):
        chain(digits, **options)


def test_use_before_fit_and_steps_that_are_not(digits):
    with pytest.raises(ValueError, match="not fitted"):
        SelfDistillation(cnn).predict(digits[1][0])
    one = chain(digits, n_steps=1, epochs=1)
    for step in (0, 2, "last", 1.0):
        with pytest.raises(ValueError, match="step must be 1 to 1"):
            one.predict(digits[1][0], step)
    with pytest.raises(ValueError, match=r"new set have shape \(1, 4, 8\)"):
        one.predict(digits[1][0][:, :, :4])


def test_batch_norm_on_a_batch_of_one_says_what_to_do(digits):
    def normed():
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))

    with pytest.raises(ValueError, match="use another batch_size"):
        chain(digits, model=normed, batch_size=23)  # 300 = 13 · 23 + 1


# ------------------------------------------------------------------ interruptions
def test_a_loss_that_is_not_finite_keeps_the_last_good_epoch(digits, tmp_path):
    calls = []

    def explode(f, y):
        calls.append(len(f))
        return squared_rows(f, y) * (math.nan if len(calls) == 2 * (5 + 2) + 3 else 1.0)

    with pytest.raises(FloatingPointError) as caught:
        chain(digits, loss=explode, epochs=4, checkpoint_dir=tmp_path, n_steps=1)
    # an epoch: 5 batches, then one look at each of the two sets (in 5 and 3 batches, one loss each)
    assert "step 1, epoch 3, batch" in str(caught.value)
    assert "the checkpoint of epoch 2 is kept" in str(caught.value)
    kept = checkpoint.read(tmp_path / "step-1" / "checkpoint.pt")
    assert len(kept["history"]) == 2
    assert all(torch.isfinite(v).all() for v in kept["model"].values())
    # it goes on from there
    calls.extend([0] * 100)
    done = chain(digits, loss=explode, epochs=4, checkpoint_dir=tmp_path, n_steps=1)
    assert same(done.steps_[0].state, chain(digits, epochs=4, n_steps=1).steps_[0].state)


def squared_rows(f, y):
    return 0.5 * (f - y).square().sum(1)


def test_weights_that_the_last_update_spoils_are_not_kept(digits, tmp_path):
    class Last(torch.optim.SGD):
        count = 0

        def step(self, closure=None):
            loss = super().step(closure)
            Last.count += 1
            if Last.count == 10:  # the last batch of epoch 2
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(math.inf)
            return loss

    with pytest.raises(FloatingPointError, match="step 1, epoch 2"):
        chain(
            digits,
            optimizer=partial(Last, lr=0.1),
            n_steps=1,
            epochs=3,
            checkpoint_dir=tmp_path,
        )
    assert len(checkpoint.read(tmp_path / "step-1" / "checkpoint.pt")["history"]) == 1


def test_a_full_disk_keeps_the_last_good_epoch(digits, tmp_path, monkeypatch):
    real, count = os.fsync, []

    def full(handle):
        count.append(handle)
        if len(count) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*the one before is kept") as caught:
        chain(digits, epochs=6, checkpoint_dir=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    kept = checkpoint.read(tmp_path / "step-1" / "checkpoint.pt")
    assert len(kept["history"]) == 3  # each write syncs a file and a directory; settings first
    assert not list(tmp_path.rglob("*.tmp"))
    done = chain(digits, epochs=6, checkpoint_dir=tmp_path)
    assert same(done.steps_[1].state, chain(digits, epochs=6).steps_[1].state)


def test_a_write_that_torch_cannot_finish_is_an_os_error(tmp_path):
    """A file system that takes no more bytes, not a patched function."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, {"x": torch.zeros(10)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match=r"could not write.*the one before is kept"):
            checkpoint.write(path, {"x": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint.read(path)["x"].shape == (10,)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


KILLED = """
import os, signal, sys
import numpy as np, torch
from selfdistill_fast.trainer import CropFlip, SelfDistillation
from selfdistill_fast.trainer.models import model_factory
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Dropout(0.2), nn.Linear(288, 10))

directory, step, role, epoch = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
begun = []

def kill(about):
    if about["event"] == "begin":
        begun.append((about["step"], about["role"], len(about["history"])))
        print(*begun[-1], flush=True)
    here = about["step"], about["role"], about.get("epoch")
    if about["event"] == "epoch" and here == (step, role, epoch):
        os.kill(os.getpid(), signal.SIGKILL)

rng = np.random.default_rng(0)
X, y = rng.random((120, 1, 8, 8), dtype=np.float32), np.arange(120) % 10
chain = SelfDistillation(net, n_steps=2, epochs=3, batch_size=50, lr=3e-3, device="cpu",
                         augment=CropFlip(1), checkpoint_dir=directory, callbacks=[kill])
chain.fit((X, y), (X[::2], y[::2]))
torch.save([fit.state for fit in chain.steps_] + [float(chain.alphas_[1])], directory + "/end.pt")
"""


def test_killed_and_run_again_it_is_the_same_fit(tmp_path):
    """SIGKILL in two of the fits: dropout, batch norm, Adam, augmentation."""

    def run(directory, step=0, role="-", epoch=0):
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(directory), str(step), role, str(epoch)],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    assert run(tmp_path / "whole").returncode == 0
    for kill in ((1, "step", 2), (2, "step", 2)):
        assert run(tmp_path / "killed", *kill).returncode == -signal.SIGKILL
    last = run(tmp_path / "killed")
    assert last.returncode == 0, last.stderr
    # it began at the epoch where it was killed, in the fit where it was killed
    assert last.stdout.splitlines() == ["2 step 2"]
    whole, killed = (
        torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert whole[-1] == killed[-1]
    for a, b in zip(whole[:-1], killed[:-1], strict=True):
        assert same(a, b)
    for name in ("step-1", "step-2-student", "step-2"):
        logs = [
            list(csv.DictReader((tmp_path / run / name / "log.csv").open()))
            for run in ("whole", "killed")
        ]
        assert [row["epoch"] for row in logs[0]] == ["1", "2", "3"]
        for a, b in zip(*logs, strict=True):
            assert all(a[k] == b[k] for k in ("epoch", "loss", "accuracy", "val_loss"))
        assert sorted(os.listdir(tmp_path / "killed" / name)) == ["fit.pt", "log.csv"]


def test_a_finished_chain_is_read_and_can_be_made_longer(digits, tmp_path):
    two = chain(digits, checkpoint_dir=tmp_path)
    fits = []
    three = chain(
        digits,
        checkpoint_dir=tmp_path,
        n_steps=3,
        callbacks=[lambda about: fits.append(about) if about["event"] == "begin" else None],
    )
    assert [(f["step"], f["role"]) for f in fits] == [(3, "student"), (3, "step")]
    assert three.n_fits_ == 5
    for a, b in zip(two.fits_, three.fits_, strict=False):
        assert same(a.state, b.state)
        np.testing.assert_array_equal(a.val_predictions, b.val_predictions)
        assert a.history == b.history


def test_a_directory_of_another_configuration_is_refused(digits, tmp_path):
    chain(digits, checkpoint_dir=tmp_path, epochs=1)
    for options, message in (
        ({"epochs": 2}, "epochs was 1, is now 2"),
        ({"epochs": 1, "lam": 0.5}, "lam was 0.01, is now 0.5"),
        ({"epochs": 1, "model": linear}, "model was Sequential, 6 tensors"),
        ({"epochs": 1, "alpha": 0.3}, "α = .*, now α = 0.3"),
    ):
        with pytest.raises(ValueError, match=message):
            chain(digits, checkpoint_dir=tmp_path, **options)
    other = ((digits[0][0] * 0.5, digits[0][1]), digits[1])
    with pytest.raises(ValueError, match="data was"):
        chain(other, checkpoint_dir=tmp_path, epochs=1)


def weighted_loss(outputs, targets, weights):
    return ((outputs - targets) ** 2 * torch.as_tensor(weights)).sum(1).mean()


@pytest.mark.parametrize("kind", [partial(torch.tensor, dtype=torch.float64), np.asarray, list])
def test_the_numbers_of_a_partial_are_compared_exactly(kind, digits, tmp_path):
    weights = np.linspace(1, 2, 10).tolist()
    run = {"checkpoint_dir": tmp_path, "epochs": 1, "n_steps": 1}
    chain(digits, loss=partial(weighted_loss, weights=kind(weights)), **run)
    chain(digits, loss=partial(weighted_loss, weights=kind(weights)), **run)
    weights[3] += 1e-12
    with pytest.raises(ValueError, match=r"loss was .*, is now "):
        chain(digits, loss=partial(weighted_loss, weights=kind(weights)), **run)


def test_chains_with_nearly_the_same_alpha_are_apart():
    alphas = [0.3, 0.3 + 1e-7, 0.3 + 1e-16, [0.3, 0.25], [0.3, np.nextafter(0.25, 1)]]
    assert len({experiment.chain_name(alpha) for alpha in alphas}) == len(alphas)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("1 EiB"),
        PermissionError(13, "not yours"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_damaged(tmp_path, monkeypatch, error):
    """The advice for a damaged one is to delete it."""
    checkpoint.write(tmp_path / "fit.pt", {"x": torch.zeros(2)})

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as caught:
        checkpoint.read(tmp_path / "fit.pt")
    assert caught.value is error


def test_a_damaged_checkpoint_is_named(digits, tmp_path):
    chain(digits, checkpoint_dir=tmp_path, epochs=1)
    path = tmp_path / "step-2" / "fit.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-2/fit.pt is damaged .* delete it"):
        chain(digits, checkpoint_dir=tmp_path, epochs=1)
    torch.save({"x": Path("x")}, path)  # would be executed on loading
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        chain(digits, checkpoint_dir=tmp_path, epochs=1)


def test_the_callers_random_numbers_are_left_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    chain(digits, epochs=1)
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------ several processes
SHARED = """
import sys
import numpy as np, torch
from functools import partial
from selfdistill_fast.trainer import SelfDistillation
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))

directory, batch_size = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
X, y = rng.random((97, 1, 8, 8)), np.arange(97) % 10  # the last batch has one row
Z, w = rng.random((31, 1, 8, 8)), np.arange(31) % 10
chain = SelfDistillation(net, n_steps=2, epochs=3, batch_size=batch_size, lam=0.5, lr=0.01,
                         precision="float64", device="cpu", checkpoint_dir=directory)
chain.fit((X, y), (Z, w))
# the processes agree, and so does a chain that is read from the files
again = SelfDistillation(net, n_steps=2, epochs=3, batch_size=batch_size, lam=0.5, lr=0.01,
                         precision="float64", device="cpu", checkpoint_dir=directory)
again.fit((X, y), (Z, w))
assert again.alphas_[1] == chain.alphas_[1]
assert torch.equal(again.steps_[1].state["3.bias"], chain.steps_[1].state["3.bias"])
"""


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SHARED, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command in (
        [*launch, script, tmp_path / "two", 16],
        [sys.executable, script, tmp_path / "one", 32],
    ):
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    for name in ("step-1", "step-2-student", "step-2"):
        one, two = (checkpoint.read(tmp_path / run / name / "fit.pt") for run in ("one", "two"))
        for key, value in one["state"].items():
            np.testing.assert_allclose(two["state"][key], value, rtol=1e-8, atol=1e-10)
        for key in ("train_predictions", "val_predictions"):
            np.testing.assert_allclose(two[key], one[key], rtol=1e-8)
        for a, b in zip(one["history"], two["history"], strict=True):
            for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
                np.testing.assert_allclose(a[key], b[key], rtol=1e-8)
        if name == "step-2":
            np.testing.assert_allclose(one["alpha"], two["alpha"], rtol=1e-6)


# ------------------------------------------------------------------ files of images
@pytest.fixture
def tree(tmp_path, rng):
    """train/CLASS/*.png and test/CLASS/*.png: 10 classes, 3 and 2 images each, red = class."""
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 255, (2, 10, 3, 32, 32, 3), dtype=np.uint8)
    for part, count in (("train", 3), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "cifar" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                array = pixels[int(part == "test"), label, i]
                array[..., 0] = label
                image.fromarray(array).save(folder / f"{i}.png")
    return tmp_path / "cifar", pixels


def test_a_folder_of_images_is_read_once(tree, monkeypatch):
    root, pixels = tree
    train, val = load_cifar10(root, source="folder")
    assert train.images.shape == (30, 32, 32, 3)
    assert train.classes == [f"class{i}" for i in range(10)]
    np.testing.assert_array_equal(train.images, pixels[0].reshape(30, 32, 32, 3))
    np.testing.assert_array_equal(val.images, pixels[1][:, :2].reshape(20, 32, 32, 3))
    assert train.labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert (train.images[:, 0, 0, 0] == train.labels).all()
    # the paper's normalisation
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = (pixels[0, 0, 0] / 255 - mean) / std
    np.testing.assert_allclose(train[0][0].permute(1, 2, 0), expected, rtol=1e-5, atol=1e-6)

    with monkeypatch.context() as patch:
        patch.setattr(
            "selfdistill_fast.trainer.data.sets._decode", lambda files: pytest.fail("decoded")
        )
        again, _ = load_folder(root)
    assert torch.equal(again.images, train.images)
    # another tree, or a damaged cache: decoded again
    (root / "train" / "class0" / "0.png").unlink()
    assert len(load_folder(root)[0]) == 29
    (root / ".selfdistill_fast-images.pt").write_bytes(b"half")
    assert len(load_folder(root)[0]) == 29


def refuse(*_, **__):
    raise OSError(errno.EROFS, "not here")


def test_folders_that_are_not_as_expected(tree, tmp_path, monkeypatch):
    root, _ = tree
    with pytest.raises(FileNotFoundError, match=r"expected the directories train/CLASS"):
        load_cifar10(tmp_path, source="folder")
    with pytest.raises(ValueError, match="source must be 'torchvision' or 'folder'"):
        load_cifar10(root, source="web")
    bad = root / "train" / "class3" / "9.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"9.png cannot be read as an image"):
        load_folder(root)
    from PIL import Image

    Image.new("RGB", (16, 16)).save(bad)
    with pytest.raises(ValueError, match=r"one size: .* 9.png is \(16, 16\)|9.png is \(16, 16\)"):
        load_folder(root)
    bad.unlink()
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match="not cached"):
        load_folder(root)
    monkeypatch.undo()
    (root / "test" / "class9").rename(root / "test" / "class99")
    with pytest.raises(ValueError, match=r"different classes: \['class9', 'class99'\]"):
        load_folder(root)


def test_cifar10_that_cannot_be_had(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded.*source='folder'"):
        load_cifar10(tmp_path)


def test_a_resnet_on_a_folder_of_images(tree):
    """The smoke of the CIFAR-10 experiment: augmentation, batch norm, channels-last, α̂."""
    train, val = load_cifar10(tree[0], source="folder")
    smoke = SelfDistillation(
        model_factory("resnet18", 10),
        n_steps=2,
        epochs=1,
        batch_size=15,
        augment=CropFlip(),
        device="cpu",
    ).fit(train, val)
    assert smoke.n_fits_ == 3
    Y = np.eye(10)[val.labels]
    first, student = (smoke.fits_[i].val_predictions for i in (0, 1))
    assert smoke.alphas_[1] == optimal_alpha(Y, first, student)


def test_without_torch_the_extra_is_named():
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import selfdistill_fast\n"
        "try:\n    import selfdistill_fast.trainer\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert "pip install 'selfdistill_fast[torch]'" in done.stdout
