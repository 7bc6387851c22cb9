"""The kernels κ(x, z), one frozen dataclass each.

Each class is one row of the table of kernels. It states which quantity of a pair of
rows it needs (``pair``), its formula in terms of that quantity (``of_pair``), its
diagonal κ(x, x), and whether it is positive semi-definite.

====================  =============  =============================================
class                 pair quantity  κ(x, z)
====================  =============  =============================================
``RBF``               ‖x − z‖²       exp(−γ s)
``Laplacian``         ‖x − z‖₁       exp(−γ s)
``Matern`` ν = 1/2    ‖x − z‖²       exp(−r),               r = √s / ℓ
``Matern`` ν = 3/2    ‖x − z‖²       (1 + r) exp(−r),       r = √(3s) / ℓ
``Matern`` ν = 5/2    ‖x − z‖²       (1 + r + r²/3) exp(−r), r = √(5s) / ℓ
``Matern`` ν = ∞      ‖x − z‖²       exp(−s / (2ℓ²)), that is ``RBF(1 / (2ℓ²))``
``Polynomial``        ⟨x, z⟩         (γ s + c₀)^degree
``Linear``            ⟨x, z⟩         s
``NTK``               angle(x, z)    see :class:`NTK`
``Precomputed``       —              the caller supplies K itself
``Custom``            —              the caller supplies a function of (X, Z)
``Features``          ⟨φ(x), φ(z)⟩   s, where the caller supplies φ
====================  =============  =============================================

and sums and products of them (combined.py). Every backend computes exactly these kernels.
``c_spec`` is all that the C and CUDA loops need to know about a kernel.
"""

from selfdistill_fast.kernels.base import Kernel
from selfdistill_fast.kernels.combined import Combined, Product, Sum
from selfdistill_fast.kernels.given import Custom, Features, OfSamples, Precomputed, has_rows
from selfdistill_fast.kernels.named import NTK, RBF, Laplacian, Linear, Matern, Polynomial
from selfdistill_fast.kernels.names import KERNELS, as_kernel, kernel_from_dict, kernel_from_name

__all__ = [
    "KERNELS",
    "NTK",
    "RBF",
    "Combined",
    "Custom",
    "Features",
    "Kernel",
    "Laplacian",
    "Linear",
    "Matern",
    "OfSamples",
    "Polynomial",
    "Precomputed",
    "Product",
    "Sum",
    "as_kernel",
    "has_rows",
    "kernel_from_dict",
    "kernel_from_name",
]
