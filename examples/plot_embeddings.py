"""
On top of a network's embeddings
================================

A network that was trained on one task is often used on another: its last hidden layer gives
features φ(x), and a linear model is fitted to them. Here this model is a chain of self-distilled
ridge regressions. With ``solver="primal"`` it never forms a kernel matrix, so it serves any number
of samples, and leave-one-out is exact for every λ and step.

A small network learns the digits 0 to 4. Its 256 hidden units are then the features for the digits
5 to 9, which it has never seen, and a quarter of whose labels are wrong. Any other feature map
would do: a torch model, random Fourier features, a scikit-learn transformer.

Run the script to write the figure to the given file, or to ``embeddings.png``::

    python examples/plot_embeddings.py [FILE]
"""

import sys
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from selfdistill_fast import Features, Linear, distill, leave_one_out, spectrum
from selfdistill_fast.plotting import figure_errors, save_figure

# %%
# The network, and the samples that it has not seen.
X, y = load_digits(return_X_y=True)
X = X / 16.0
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a few hundred iterations are enough
    network = MLPClassifier((256,), max_iter=300, random_state=0).fit(X[y < 5], y[y < 5])


def embeddings(X):
    """The hidden units of the network."""
    return np.maximum(X @ network.coefs_[0] + network.intercepts_[0], 0.0)


X, y = X[y >= 5], y[y >= 5] - 5
rng = np.random.default_rng(0)
test = rng.random(len(y)) < 0.7
noisy = np.where(rng.random(len(y)) < 0.25, rng.integers(5, size=len(y)), y)
X_train, Y_train = X[~test], np.eye(5)[noisy[~test]]

# %%
# ``Features`` makes a kernel of any feature map. The cost is that of 256 features, not of the
# number of samples squared. Leave-one-out chooses λ for the first step, and α for the others.
lams, n_steps = np.logspace(-2, 4, 13), 6
errors = {}
for name, kernel in {"pixels": Linear(), "embeddings": Features(embeddings)}.items():
    s = spectrum(X_train, Y_train, kernel, solver="primal", fit_intercept=True)
    mse = np.mean((leave_one_out(s, lams, 0.5, 1)[:, 0] - Y_train) ** 2, axis=(1, 2))
    lam = float(lams[mse.argmin()])
    path = distill(s, lam, "optimal", n_steps)
    left_out = leave_one_out(s, lam, path.alphas, n_steps)
    loo = (left_out.argmax(2) != noisy[~test]).mean(axis=1)
    wrong = (path.predict(X[test], step="all").argmax(2) != y[test]).mean(axis=1)
    errors[name] = wrong
    print(f"{name:<11} λ = {lam:<6.3g} features: {path.coef().shape[0]}")
    print(f"{'':<11} leave-one-out error (noisy labels):", " ".join(f"{e:.3f}" for e in loo))
    print(f"{'':<11} test error (true labels):          ", " ".join(f"{e:.3f}" for e in wrong))

# %%
# The first step is ridge regression.
file = sys.argv[1] if len(sys.argv) > 1 else "embeddings.png"
figure = figure_errors(errors, ylabel="test error", title="digits 5 to 9, a quarter mislabelled")
print("written:", save_figure(figure, file))
