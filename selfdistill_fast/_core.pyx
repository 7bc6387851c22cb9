# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""The border between Python and the C loops of csrc/: check, release the GIL, call, raise.

A :class:`Gram` represents one K(X, Z) to be computed. Its methods work on ranges of panels and
tiles and may be called from several threads at once; ``_backend/threads.py`` does so. Any
partition of a range gives the same bits.

The instruction set is chosen once, at import: the best one that was compiled and that this
processor supports, or the one named by the environment variable ``SDF_ISA``.
"""

import os
from importlib import resources

import numpy as np

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_New
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t

from selfdistill_fast cimport _sdf as sdf
from selfdistill_fast._sdf cimport SDF_OK, sdf_api, sdf_job, sdf_loops, sdf_status


cdef extern from *:
    """
    #ifdef _WIN32
    #include <malloc.h>
    #define sdf_aligned(size) _aligned_malloc(size, 64)
    #define sdf_release(p) _aligned_free(p)
    #else
    #include <stdlib.h>
    static void *sdf_aligned(size_t size) {
      void *p = NULL;
      return posix_memalign(&p, 64, size) == 0 ? p : NULL;
    }
    #define sdf_release(p) free(p)
    #endif
    """
    void* sdf_aligned(size_t size) nogil
    void sdf_release(void* p) nogil


# ------------------------------------------------------------------ instruction sets
cdef sdf_api _api
_api.abi = sdf.SDF_ABI

_ISA_IDS = {sdf.sdf_isa_name(i).decode(): i for i in range(sdf.SDF_N_ISAS)}

#: name -> number in csrc/sdf.h, for every kernel that the loops implement
KERNEL_IDS = {sdf.sdf_kernel_name(i).decode(): i for i in range(sdf.SDF_N_KERNELS)}


def isa_available():
    """Names of the instruction sets that were compiled and that this processor supports."""
    return tuple(name for name, i in _ISA_IDS.items() if sdf.sdf_loops_of(i, 8) != NULL)


def isa():
    """Name of the instruction set in use."""
    return sdf.sdf_isa_name(_api.f64.isa).decode()


def _use_isa(name):
    """Switch to another instruction set, for jobs made from now on (for tests)."""
    if name not in isa_available():
        raise ValueError(
            f"instruction set {name!r} is not available; this processor and build support: "
            f"{', '.join(isa_available())}"
        )
    _api.f32 = sdf.sdf_loops_of(_ISA_IDS[name], 4)
    _api.f64 = sdf.sdf_loops_of(_ISA_IDS[name], 8)


try:
    _use_isa(os.environ.get("SDF_ISA") or isa_available()[-1])
except ValueError as _error:
    raise ImportError(f"environment variable SDF_ISA: {_error}") from None

_C_API = PyCapsule_New(&_api, b"selfdistill_fast._core._C_API", NULL)


def get_include():
    """Directory of sdf.h, for extensions that cimport ``selfdistill_fast._sdf``."""
    header = resources.files("selfdistill_fast") / "include" / "sdf.h"
    return os.path.dirname(str(header))


# ----------------------------------------------------------------------- buffers
cdef class _Array:
    """A C-contiguous array of float or double, held for the lifetime of this object."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, array, str name, int ndim, int real_size, bint writable=False):
        cdef int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS
        PyObject_GetBuffer(array, &self.view, flags | PyBUF_WRITABLE if writable else flags)
        self.held = True
        expected = b"d" if real_size == 8 else b"f"
        if self.view.ndim != ndim or self.view.format != expected:
            raise TypeError(
                f"{name} must be a {ndim}-D array of {'float64' if real_size == 8 else 'float32'}, "
                f"got {getattr(array, 'dtype', self.view.format)} of {self.view.ndim} dimension(s)"
            )
        if <uintptr_t>self.view.buf % real_size != 0:
            raise ValueError(f"{name} is not aligned to its item size")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef int _raise_from(sdf_status status) except -1:
    if status == SDF_OK:
        return 0
    raise ValueError(f"csrc/sdf.h: {sdf.sdf_message(status).decode()}")


cdef const sdf_loops* _loops_for(dtype) except NULL:
    if dtype == np.float64:
        return _api.f64
    if dtype == np.float32:
        return _api.f32
    raise TypeError(f"the loops accept float32 and float64, got {dtype}")


def empty_aligned(shape, dtype):
    """An uninitialised C-contiguous array that begins on a cache line."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start:start + size].view(dtype).reshape(shape)


# ------------------------------------------------------------------------- loops
def exp(x):
    """exp of a float32 or float64 array by the loops' own exponential (for tests)."""
    x = np.ascontiguousarray(x)
    cdef const sdf_loops* loops = _loops_for(x.dtype)
    y = np.empty_like(x)
    cdef _Array source = _Array(x.ravel(), "x", 1, loops.real_size)
    cdef _Array target = _Array(y.reshape(-1), "y", 1, loops.real_size, True)
    with nogil:
        loops.exp(source.view.buf, target.view.buf, source.view.shape[0])
    return y


cdef class Gram:
    """The Gram matrix K(X, Z) of one kernel, ready to be computed tile by tile.

    Parameters
    ----------
    X : (n, d) float32 or float64, C-contiguous, may be read-only
    Z : (m, d) of the same dtype, or None for K(X, X)
    spec : tuple
        ``Kernel.c_spec``: name, two real parameters, one integer parameter.
    out : (n, m) of the same dtype, C-contiguous, optional
    stream : bool
        Write ``out`` past the caches, for matrices larger than the caches.
    """

    cdef sdf_job job
    cdef const sdf_loops* loops
    cdef list kept
    cdef readonly object dtype

    def __init__(self, X, Z, spec, out=None, *, bint stream=False):
        self.dtype = X.dtype
        self.loops = _loops_for(X.dtype)
        cdef int size = self.loops.real_size
        cdef _Array x = _Array(X, "X", 2, size)
        cdef _Array z = x if Z is None else _Array(Z, "Z", 2, size)
        cdef _Array o
        self.kept = [x, z]
        self.job.problem.n, self.job.problem.d = x.view.shape[0], x.view.shape[1]
        self.job.problem.m = z.view.shape[0]
        if z.view.shape[1] != self.job.problem.d:
            raise ValueError(
                f"X has {self.job.problem.d} columns but Z has {z.view.shape[1]}; they must agree"
            )
        self.job.problem.x = x.view.buf
        self.job.problem.z = NULL if Z is None else z.view.buf
        if out is not None:
            o = _Array(out, "out", 2, size, True)
            shape = (self.job.problem.n, self.job.problem.m)
            if out.shape != shape:
                raise ValueError(f"out must have shape {shape}, got {out.shape}")
            self.kept.append(o)
            self.job.problem.out = o.view.buf
        self.job.problem.ld = self.job.problem.m
        self.job.problem.stream = stream
        self._set_kernel(spec)
        self.job.buffers.shift = self._buffer(self.job.problem.d, zero=True)
        self.job.buffers.packed_x = self._buffer(self.job.plan.packed_size_x)
        self.job.buffers.packed_z = self._buffer(self.job.plan.packed_size_z)
        self.job.buffers.norms_x = self._buffer(self.job.plan.norms_size_x)
        self.job.buffers.norms_z = self._buffer(self.job.plan.norms_size_z)
        if self.job.plan.centred and self.job.problem.n and self.job.problem.m:
            _raise_from(self.loops.center(&self.job))

    cdef void* _buffer(self, Py_ssize_t size, bint zero=False) except? NULL:
        if size == 0:
            return NULL
        array = empty_aligned((size,), self.dtype)
        if zero:
            array[:] = 0
        cdef _Array buffer = _Array(array, "buffer", 1, self.loops.real_size, True)
        self.kept.append(buffer)
        return buffer.view.buf

    cdef void* _scratch(self) except NULL:
        cdef void* scratch = sdf_aligned(self.job.plan.scratch_size * self.loops.real_size)
        if scratch == NULL:
            raise MemoryError
        return scratch

    def _set_kernel(self, spec):
        name, a, b, degree = spec
        if name not in KERNEL_IDS:
            raise ValueError(f"unknown kernel {name!r}; known: {', '.join(KERNEL_IDS)}")
        self.job.problem.kernel = KERNEL_IDS[name]
        self.job.problem.a, self.job.problem.b, self.job.problem.degree = a, b, degree
        _raise_from(self.loops.prepare(&self.job))

    def set_kernel(self, spec):
        """Change to another kernel of the same pair quantity; packed rows are retained."""
        cdef int pair = self.job.plan.pair
        self._set_kernel(spec)
        if self.job.plan.pair != pair:
            raise ValueError("set_kernel: the kernels do not share their pair quantity")

    @property
    def n_panels(self):
        return self.job.plan.panels_x + self.job.plan.panels_z

    @property
    def n_tiles(self):
        return self.job.plan.tiles

    @property
    def tile_grid(self):
        """Rows and columns of tiles."""
        return self.job.plan.tiles_x, self.job.plan.tiles_z

    @property
    def tile(self):
        """Entries along the side of a tile."""
        return self.loops.tile

    @property
    def symmetric(self):
        return bool(self.job.plan.symmetric)

    def pack(self, Py_ssize_t lo, Py_ssize_t hi):
        """Pack panels [lo, hi) of ``n_panels``; all must be packed before any tile is computed."""
        cdef sdf_status status
        with nogil:
            status = self.loops.pack(&self.job, lo, hi)
        _raise_from(status)

    def gram(self, Py_ssize_t lo, Py_ssize_t hi):
        """Write tiles [lo, hi) of ``n_tiles`` to ``out``."""
        cdef sdf_status status
        cdef void* scratch = self._scratch()
        with nogil:
            status = self.loops.gram(&self.job, lo, hi, scratch)
            sdf_release(scratch)
        _raise_from(status)

    def keep_pairs(self):
        """Allocate the array that :meth:`pairs` fills; returns its size in bytes."""
        if self.job.buffers.pairs == NULL:
            self.job.buffers.pairs = self._buffer(self.job.plan.pairs_size)
        return self.job.plan.pairs_size * self.loops.real_size

    def pairs(self, Py_ssize_t lo, Py_ssize_t hi):
        """Fill tiles [lo, hi) with pair quantities, shared by kernels (:meth:`set_kernel`)."""
        cdef sdf_status status
        with nogil:
            status = self.loops.pairs(&self.job, lo, hi)
        _raise_from(status)

    def of_pairs(self, Py_ssize_t lo, Py_ssize_t hi):
        """Write tiles [lo, hi) of K to ``out`` from :meth:`pairs`."""
        cdef sdf_status status
        cdef void* scratch = self._scratch()
        with nogil:
            status = self.loops.of_pairs(&self.job, lo, hi, scratch)
            sdf_release(scratch)
        _raise_from(status)

    def half_gram(self, Py_ssize_t lo, Py_ssize_t hi, tiles):
        """Fill tiles [lo, hi) of K(X, X) in packed symmetric storage, see :func:`half_shape`.

        ``tiles`` may be narrower than X: the entries are computed in the dtype of X.
        """
        cdef int size = 4 if tiles.dtype == np.float32 else 8
        cdef _Array half = _Array(tiles, "tiles", 3, size, True)
        shape = half_shape(self.job.problem.n)
        if tiles.shape != shape:
            raise ValueError(f"half_gram: tiles must have shape {shape}, got {tiles.shape}")
        cdef sdf_status status
        cdef void* scratch = self._scratch()
        with nogil:
            status = self.loops.half_gram(&self.job, lo, hi, half.view.buf, size, scratch)
            sdf_release(scratch)
        _raise_from(status)

    def multiply(self, tuple rows, tuple columns, Wt, sum_rows, sum_cols):
        """Add K @ W over a rectangle of tiles to ``sum_rows``, and its mirror image.

        Parameters
        ----------
        rows, columns : (int, int)
            Ranges of tile rows and tile columns.
        Wt : (p, w) of the dtype of X or float64, by :func:`empty_aligned`
            W transposed, zero beyond column m; w >= tile * columns of tiles. Within a tile
            the products are summed in its dtype.
        sum_rows : (p, s) float64
            ``sum_rows[q, i] += Σ_j K[i, j] Wt[q, j]``
        sum_cols : (p, s) float64
            For K(X, X), above the diagonal: ``sum_cols[q, j] += Σ_i K[i, j] Wt[q, i]``.
        """
        cdef ptrdiff_t i0 = rows[0], i1 = rows[1], j0 = columns[0], j1 = columns[1]
        cdef int w_size = 8 if Wt.dtype == np.float64 else self.loops.real_size
        cdef _Array w = _Array(Wt, "Wt", 2, w_size)
        cdef _Array r = _Array(sum_rows, "sum_rows", 2, 8, True)
        cdef _Array c = _Array(sum_cols, "sum_cols", 2, 8, True)
        cdef ptrdiff_t p = w.view.shape[0], ldw = w.view.shape[1], lds = r.view.shape[1]
        if r.view.shape[0] != p or c.view.shape[0] != p or c.view.shape[1] != lds:
            raise ValueError("multiply: the sums must have one row per row of Wt")
        cdef sdf_status status
        cdef void* scratch = self._scratch()
        with nogil:
            status = self.loops.multiply(
                &self.job, i0, i1, j0, j1, w.view.buf, w_size, ldw, p,
                <double*>r.view.buf, <double*>c.view.buf, lds, scratch)
            sdf_release(scratch)
        _raise_from(status)


def half_shape(Py_ssize_t n):
    """Shape (tiles, t, t) of the upper triangle of a symmetric (n, n) matrix by tiles.

    They are stored by rows of tiles, each from the diagonal on. Entries beyond row or column n of
    the matrix are zero; diagonal tiles are complete.
    """
    cdef Py_ssize_t tile = _api.f64.tile, side = (n + tile - 1) // tile
    return side * (side + 1) // 2, tile, tile


def half_multiply(tiles, Py_ssize_t n, Vt, sums, Py_ssize_t lo, Py_ssize_t hi):
    """Blocks [lo, hi) of K @ V from the tiles of :meth:`Gram.half_gram`.

    Parameters
    ----------
    tiles : :func:`half_shape` of n, float32 or float64, by :func:`empty_aligned`
    Vt : (p, w) float64, by :func:`empty_aligned`
        V transposed, zero beyond column n; w >= tile * rows of tiles.
    sums : (parts, p, s) float64
        Set by the blocks, parts (parts + 1) / 2 of them; K @ V is its sum over the parts.
    """
    cdef const sdf_loops* loops = _loops_for(tiles.dtype)
    cdef _Array half = _Array(tiles, "tiles", 3, loops.real_size)
    cdef _Array v = _Array(Vt, "Vt", 2, 8)
    cdef _Array s = _Array(sums, "sums", 3, 8, True)
    cdef ptrdiff_t p = v.view.shape[0], ldw = v.view.shape[1]
    cdef ptrdiff_t parts = s.view.shape[0], lds = s.view.shape[2]
    if tiles.shape != half_shape(n):
        raise ValueError(
            f"half_multiply: tiles must have shape {half_shape(n)}, got {tiles.shape}"
        )
    if s.view.shape[1] != p:
        raise ValueError("half_multiply: the sums must have one row per row of Vt")
    cdef sdf_status status
    with nogil:
        status = loops.half_multiply(
            half.view.buf, n, <const double*>v.view.buf, ldw, p, parts, lo, hi,
            <double*>s.view.buf, lds)
    _raise_from(status)


def column_units(Py_ssize_t n):
    """Number of column units over which :func:`inner_products` and :func:`project_out` range."""
    return (n + sdf.SDF_COLUMN_BLOCK - 1) // sdf.SDF_COLUMN_BLOCK


def inner_products(basis, W, sums, Py_ssize_t at, Py_ssize_t lo, Py_ssize_t hi):
    """Units [lo, hi) of basis @ W.T: basis (k, n), W (p, n) -> sums[:, at : at + k].

    ``sums`` is float64 of shape (units, at least at + k, p); the product is its sum over the
    units.
    """
    cdef const sdf_loops* loops = _loops_for(basis.dtype)
    cdef _Array q = _Array(basis, "basis", 2, loops.real_size)
    cdef _Array w = _Array(W, "W", 2, loops.real_size)
    cdef _Array s = _Array(sums, "sums", 3, 8, True)
    cdef ptrdiff_t k = q.view.shape[0], n = q.view.shape[1], p = w.view.shape[0]
    cdef ptrdiff_t lds = s.view.shape[1] * p
    if (w.view.shape[1] != n or s.view.shape[0] != column_units(n) or s.view.shape[2] != p
            or at < 0 or at + k > s.view.shape[1]):
        raise ValueError("inner_products: sums must have shape (units, >= at + k, p)")
    cdef sdf_status status
    with nogil:
        status = loops.inner_products(
            q.view.buf, k, n, w.view.buf, p, n, n, <double*>s.view.buf + at * p, lds, lo, hi)
    _raise_from(status)


def project_out(basis, h, Py_ssize_t at, W, Py_ssize_t lo, Py_ssize_t hi):
    """Units [lo, hi) of W -= h[at : at + k].T @ basis: basis (k, n), h float64, W (p, n)."""
    cdef const sdf_loops* loops = _loops_for(basis.dtype)
    cdef _Array q = _Array(basis, "basis", 2, loops.real_size)
    cdef _Array c = _Array(h, "h", 2, 8)
    cdef _Array w = _Array(W, "W", 2, loops.real_size, True)
    cdef ptrdiff_t k = q.view.shape[0], n = q.view.shape[1], p = w.view.shape[0]
    if w.view.shape[1] != n or c.view.shape[1] != p or at < 0 or at + k > c.view.shape[0]:
        raise ValueError("project_out: h must have shape (>= at + k, p)")
    cdef sdf_status status
    with nogil:
        status = loops.project_out(
            q.view.buf, k, n, <const double*>c.view.buf + at * p, w.view.buf, p, n, n, lo, hi)
    _raise_from(status)


def filter_units(Py_ssize_t k, Py_ssize_t n_lam):
    """Number of units over which :func:`shrinkage_path` and :func:`pure_filters` range."""
    return n_lam * ((k + sdf.SDF_FILTER_BLOCK - 1) // sdf.SDF_FILTER_BLOCK)


def shrinkage_path(d, lam, alpha, out, Py_ssize_t lo, Py_ssize_t hi):
    """Units [lo, hi) of diag B^(1..T): d (k,), lam (L,), alpha (T,) -> out (L, T, k)."""
    cdef const sdf_loops* loops = _loops_for(d.dtype)
    cdef _Array d_ = _Array(d, "d", 1, loops.real_size)
    cdef _Array lam_ = _Array(lam, "lam", 1, 8)
    cdef _Array alpha_ = _Array(alpha, "alpha", 1, 8)
    cdef _Array out_ = _Array(out, "out", 3, loops.real_size, True)
    if out.shape != (lam.shape[0], alpha.shape[0], d.shape[0]):
        raise ValueError("shrinkage_path: out must have shape (L, T, k)")
    cdef sdf_status status
    with nogil:
        status = loops.shrinkage_path(
            d_.view.buf, d_.view.shape[0], <const double*>lam_.view.buf, lam_.view.shape[0],
            <const double*>alpha_.view.buf, alpha_.view.shape[0], out_.view.buf, lo, hi)
    _raise_from(status)


def pure_filters(d, lam, out, Py_ssize_t lo, Py_ssize_t hi):
    """Units [lo, hi) of the pure-step filters: d (k,), lam (L,) -> out (L, T, k)."""
    cdef const sdf_loops* loops = _loops_for(d.dtype)
    cdef _Array d_ = _Array(d, "d", 1, loops.real_size)
    cdef _Array lam_ = _Array(lam, "lam", 1, 8)
    cdef _Array out_ = _Array(out, "out", 3, loops.real_size, True)
    if out.shape[0] != lam.shape[0] or out.shape[2] != d.shape[0]:
        raise ValueError("pure_filters: out must have shape (L, T, k)")
    cdef sdf_status status
    with nogil:
        status = loops.pure_filters(
            d_.view.buf, d_.view.shape[0], <const double*>lam_.view.buf, lam_.view.shape[0],
            out_.view.shape[1], out_.view.buf, lo, hi)
    _raise_from(status)
