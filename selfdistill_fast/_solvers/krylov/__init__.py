"""Krylov spectra: the action of K on these targets only.

Every prediction of a chain is h(K) t for a smooth h, so the space spanned by t, Kt, K²t, …
contains it to high accuracy after k ≪ n products with K. The (block) Lanczos process gives an
orthonormal basis Q of that space, with

    K Q = Q T + Q₊ B Eᵀ,   T = QᵀKQ = S Θ Sᵀ,

where Q₊ is the next block and E selects the last block of coordinates. The Ritz values Θ and
vectors V = Q S replace eigenvalues and eigenvectors: everything is as for a full spectrum
(eigh.py) with d = Θ and z = Vᵀt. This serves every λ, α and number of steps. It represents f(K)t
but not diag f(K), so there is no leave-one-out.

**Certificate.** Let t_s = A^s t, ĉ_s and t̂_s the computed dual coefficients and targets of the
pure steps, and r_s = t̂_(s−1) − (K + λ)ĉ_s their residuals; in exact arithmetic

    r_s = −Q₊ B Eᵀ (T + λ)⁻¹ (T(T + λ)⁻¹)^(s−1) Qᵀt.

Then ĉ_τ − c_τ = (K + λ)⁻¹ (δ_(τ−1) − r_τ) and δ_s = A δ_(s−1) + λ(K + λ)⁻¹ r_s for the error
δ_s of t̂_s. A function with coefficients e is ⟨φ(x), Φᵀe⟩, with ‖Φᵀe‖ = ‖K^½e‖; so with F(x) =
√κ(x, x) and u = d/(d + λ)

    |f̂_τ(x) − f_τ(x)| <= F(x) Σ_(s<=τ) ‖r_s‖ g_(τ−s),
    g_0 = max √d/(d + λ) = 1/(2√λ),   g_i = max u^(i−½) (1 − u)^(3/2) / √λ  for i >= 1,

The effect of r_s on later steps is known more precisely for its part in the basis; for the rest
it is bounded by the moments rᵀKr and ‖Kr‖². With an intercept, φ is centred: F(x) = ‖φ(x) − φ̄‖,
which is at most √κ(x, x) + ‖φ̄‖; and a spurious component η of ĉ along q adds η ‖K^½q‖ F(x).

The stopping rule uses the residuals of exact arithmetic and g, for every step at ``lam_min`` and
for every requested λ: the bound need not fall as λ grows, since a residual r_s, s > 1, may vanish
at one λ and not at the next. The certificate uses residuals recomputed with products with K, and
bounds for the rounding errors that may be hidden in them or added to a prediction; see bounds.py
and docs/certificate.md. Rounding falls as λ grows: it is a multiple of ‖ĉ_s‖, and (K + λ)⁻¹, A
and the gains all fall.
"""

from selfdistill_fast._solvers.krylov.memory import krylov_bytes
from selfdistill_fast._solvers.krylov.solver import MAX_RANK, KrylovSpectrum

__all__ = ["MAX_RANK", "KrylovSpectrum", "krylov_bytes"]
