"""The empirical neural tangent kernel against autograd, one derivative at a time."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
from torch import nn  # noqa: E402

from selfdistill_fast import distill, spectrum  # noqa: E402
from selfdistill_fast.trainer import empirical_ntk_gram  # noqa: E402


def network(n_outputs=3):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, n_outputs),
    )
    net[1].running_mean.uniform_(-0.1, 0.1)
    return net.double()


def by_hand(net, X, Z):
    """(n, m, p, p), one backward pass for each input and output."""
    net.eval()
    parameters = [p for p in net.parameters() if p.requires_grad]

    def jacobian(x):
        rows = []
        for value in net(x[None]).reshape(-1):
            grads = torch.autograd.grad(value, parameters, retain_graph=True)
            rows.append(torch.cat([g.reshape(-1) for g in grads]))
        return torch.stack(rows)

    left, right = ([jacobian(x) for x in torch.as_tensor(data)] for data in (X, Z))
    return np.array([[(a @ b.T).numpy() for b in right] for a in left])


@pytest.fixture
def inputs(rng):
    return rng.normal(size=(9, 2, 5, 5)), rng.normal(size=(5, 2, 5, 5))


@pytest.mark.parametrize("max_memory", [2**31, 60_000, 25_000])
def test_it_is_the_product_of_the_derivatives(inputs, max_memory):
    """Whatever the blocks: all at once, several rows, one row at a time."""
    net, (X, Z) = network(), inputs
    full = by_hand(net, X, Z)
    for data, expected in (((X, Z), full), ((X,), by_hand(net, X, X))):
        K = empirical_ntk_gram(net, *data, outputs="full", max_memory=max_memory)
        np.testing.assert_allclose(K, expected, rtol=1e-9, atol=1e-12)
        mean = empirical_ntk_gram(net, *data, max_memory=max_memory)
        np.testing.assert_allclose(mean, np.trace(expected, axis1=2, axis2=3) / 3, rtol=1e-9)


def test_it_is_symmetric_and_positive_and_leaves_the_network_alone(inputs):
    net, (X, _) = network(), inputs
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    K = empirical_ntk_gram(net, X, max_memory=40_000)
    np.testing.assert_array_equal(K, K.T)
    assert np.linalg.eigvalsh(K).min() > -1e-12
    full = empirical_ntk_gram(net, X, outputs="full", max_memory=40_000)
    np.testing.assert_array_equal(full, full.transpose(1, 0, 3, 2))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_frozen_weights_have_no_part_and_precision_is_the_networks(inputs):
    net, (X, Z) = network(), inputs
    for p in net[0].parameters():
        p.requires_grad_(False)
    expected = by_hand(net, X, Z)
    K = empirical_ntk_gram(net, X, Z, outputs="full")
    np.testing.assert_allclose(K, expected, rtol=1e-9, atol=1e-12)
    single = empirical_ntk_gram(net.float(), X.astype(np.float32), Z)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, np.trace(expected, axis1=2, axis2=3) / 3, rtol=1e-4)


def test_the_exact_engine_runs_on_it(inputs):
    net, (X, Z) = network(1), inputs
    y, y_val = X[:, 0, 0, 0], Z[:, 0, 0, 0]
    K, K_val = empirical_ntk_gram(net, X), empirical_ntk_gram(net, Z, X)
    path = distill(spectrum(K, y, "precomputed"), 0.5, "optimal", 2, X_val=K_val, y_val=y_val)
    ridge = K_val @ np.linalg.solve(K + 0.5 * np.eye(9), y)
    np.testing.assert_allclose(path.predict(K_val, step=1), ridge, rtol=1e-9)


def test_bad_input(inputs):
    net, (X, Z) = network(), inputs
    with pytest.raises(ValueError, match="outputs must be 'mean' or 'full'"):
        empirical_ntk_gram(net, X, outputs="sum")
    with pytest.raises(ValueError, match=r"X have shape \(2, 5, 5\), Z \(2, 5, 4\)"):
        empirical_ntk_gram(net, X, Z[..., :4])
    with pytest.raises(ValueError, match="Z set contain NaN"):
        empirical_ntk_gram(net, X, Z * np.nan)
    with pytest.raises(ValueError, match="X set is empty"):
        empirical_ntk_gram(net, X[:0])
    with pytest.raises(MemoryError, match=r"two inputs need .* bytes, max_memory is 1,000"):
        empirical_ntk_gram(net, X, max_memory=1000)
    with pytest.raises(ValueError, match="no weights that require gradients"):
        empirical_ntk_gram(net.requires_grad_(False), X)
