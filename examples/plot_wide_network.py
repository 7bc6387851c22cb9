"""
A wide network and its kernel
=============================

.. image:: /images/wide_network.png
   :alt: α̂ and α* against the width of the network

Section 5 of the paper estimates α̂ for networks, because wide networks are nearly kernel ridge
regressions, for which α* is exact. This example computes both for the same network. α̂ is obtained
by training a student with α = 0 at each step. α* is computed by the exact engine on the network's
neural tangent kernel at the initial weights. As the network gets wider, α̂ approaches α*, and
the two models' predictions approach each other.

The network has one hidden layer, f(x; θ) = a · relu(W x) / √width. Training changes and penalises
the difference θ − θ₀ from the initial weights, which are the same at every step.

The example needs the extra ``torch`` and takes half a minute. Run the script to write the figure to
the given file, or to ``wide_network.png``::

    python examples/plot_wide_network.py [FILE]
"""

# sphinx_gallery_thumbnail_path = "images/wide_network.png"
import sys
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from selfdistill_fast import distill, spectrum
from selfdistill_fast.plotting import save_figure
from selfdistill_fast.trainer import SelfDistillation, empirical_ntk_gram

import torch  # isort: skip  (after the trainer, whose error names the extra)
from torch import nn  # isort: skip


class WideNetwork(nn.Module):
    """f(x; θ₀ + θ) − f(x; θ₀), with θ = 0 at first."""

    def __init__(self, width: int):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("W0", torch.randn(width, 2, generator=generator))
        self.register_buffer("a0", torch.randn(width, generator=generator))
        self.W = nn.Parameter(torch.zeros(width, 2))
        self.a = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        now = torch.relu(x @ (self.W0 + self.W).T) @ (self.a0 + self.a)
        return (now - torch.relu(x @ self.W0.T) @ self.a0) / len(self.a) ** 0.5


# %%
# Noisy values of a sine. The second column of X is the bias of the hidden layer.
rng = np.random.default_rng(0)


def draw(n):
    x = rng.uniform(-1, 1, size=n)
    return np.stack([x, np.ones(n)], axis=1), np.sin(np.pi * x) + rng.normal(size=n)


(X, y), (X_val, y_val) = draw(60), draw(200)
lam, n_steps, widths = 2.0, 3, (32, 128, 512, 2048)

# %%
# Train with full batches to convergence, in float64. A chain of three steps takes five fits of the
# network, and one factorisation of its kernel.
estimated, exact, gaps = [], [], []
for width in widths:
    network = SelfDistillation(
        partial(WideNetwork, width),
        n_steps=n_steps,
        output="identity",
        optimizer=partial(torch.optim.LBFGS, max_iter=300, line_search_fn="strong_wolfe"),
        epochs=1,
        batch_size=len(X),
        lam=lam,
        precision="float64",
        device="cpu",
    ).fit((X, y), (X_val, y_val))

    untrained = WideNetwork(width).double()
    K_val = empirical_ntk_gram(untrained, X_val, X)
    kernel = distill(
        spectrum(empirical_ntk_gram(untrained, X), y, "precomputed"),
        lam,
        "optimal",
        n_steps,
        X_val=K_val,
        y_val=y_val,
    )
    estimated.append(network.alphas_[1:])
    exact.append(kernel.alphas[1:])
    difference = network.predict(X_val, "all") - kernel.predict(K_val, "all")
    gaps.append(np.abs(difference).max(axis=1))
    print(
        f"width {width:5}: α̂ of the network {np.round(estimated[-1], 3)}, "
        f"α* of its kernel {np.round(exact[-1], 3)}, "
        f"largest difference of the predictions {gaps[-1].max():.3f}"
    )

# %%
# Left: α̂ (filled) and α* (open) of each step. Right: the largest difference of the predictions.
figure = Figure(figsize=(8.4, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
colours = ("#0072B2", "#D55E00", "#009E73")
for t, colour in zip((2, 3), colours, strict=False):
    left.plot(widths, [a[t - 2] for a in estimated], "o-", color=colour, label=f"α̂, step {t}")
    left.plot(
        widths, [a[t - 2] for a in exact], "s--", color=colour, mfc="none", label=f"α*, step {t}"
    )
for t, colour in zip((1, 2, 3), ("#8a8a8a", *colours), strict=False):
    right.plot(widths, [gap[t - 1] for gap in gaps], "o-", color=colour, label=f"step {t}")
left.set_title("ground-truth weight", fontsize=11)
right.set_title("largest difference of the predictions", fontsize=11)
right.set_yscale("log")
for ax in (left, right):
    ax.set_xscale("log")
    ax.set_xticks(widths, map(str, widths))
    ax.minorticks_off()
    ax.set_xlabel("width of the network")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9.5)
file = sys.argv[1] if len(sys.argv) > 1 else "wide_network.png"
print("written:", save_figure(figure, file))
