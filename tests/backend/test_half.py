"""Half of a symmetric K kept in tiles, and products that read it once.

Against the reference for every kernel, instruction set, precision, awkward size and number
of columns; identities that hold exactly; then what a caller may do.
"""

from __future__ import annotations

import math
import mmap
import sys

import numpy as np
import pytest
from cases import KERNELS, kernel_id, points

from selfdistill_fast import _core
from selfdistill_fast._backend import get_backend, threads
from selfdistill_fast._backend.reference import Reference
from selfdistill_fast.kernels import NTK, RBF, Custom, Linear, Polynomial

REFERENCE = Reference()
#: awkward sizes, and those around the side of a tile
SIZES = (0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 97, 191, 192, 193, 385)
#: (of X, of what is kept)
DTYPES = [(np.float64, np.float64), (np.float64, np.float32), (np.float32, np.float32)]


@pytest.fixture(params=["reference", "cpu"])
def be(request):
    return get_backend(request.param)


def widened(half_dtype, *matrices):
    """Matrices as ``half`` keeps them, in double again."""
    return [M.astype(half_dtype).astype(np.float64) for M in matrices]


def assert_product(product, K, V, eps):
    """Sums of n terms in double: each entry to n eps of the sum of moduli."""
    assert product.dtype == np.float64
    assert product.shape == (K.shape[0], V.shape[1])
    size = np.abs(K) @ np.abs(V)
    assert (np.abs(product - K @ V) <= eps * np.maximum(size, 1e-300)).all()


@pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(t.__name__ for t in d))
def test_products_agree_with_those_of_the_whole_matrix(isa, kernel, dtypes, rng):
    """The kept entries are those of ``gram``, rounded once; their products are double."""
    cpu = get_backend("cpu")
    for number, n in enumerate(SIZES):
        X = points(rng, n, (1, 3, 8, 17, 260)[number % 5], dtypes[0], offset=0.3)
        (K,) = widened(dtypes[1], cpu.gram(X, None, kernel))
        half = cpu.half_gram(X, kernel, dtypes[1])
        assert (half.n, half.dtype) == (n, dtypes[1])
        for p in (0, 1, 2, 3, 4, 5, 8, 16, 21)[number % 2 :: 2]:
            V = rng.normal(size=(n, p))
            assert_product(cpu.half_matmul(half, V), K, V, (n + 8) * 2.0**-53)


@pytest.mark.parametrize("p", range(1, 20))
def test_every_number_of_columns(isa, p, rng):
    X = points(rng, 401, 3, offset=0.3)
    for dtype in (np.float64, np.float32):
        half = get_backend("cpu").half_gram(X, RBF(0.5), dtype)
        (K,) = widened(dtype, get_backend("cpu").gram(X, None, RBF(0.5)))
        V = rng.normal(size=(401, p))
        assert_product(get_backend("cpu").half_matmul(half, V), K, V, 400 * 2.0**-53)


@pytest.mark.parametrize("kernel", [RBF(0.5), NTK(2)], ids=kernel_id)
def test_columns_of_the_identity_give_back_the_matrix(isa, kernel, rng):
    """Exactly: every entry is there once, in its place, and symmetric."""
    X = points(rng, 389, 4, offset=0.3)
    K = get_backend("cpu").gram(X, None, kernel)
    half = get_backend("cpu").half_gram(X, kernel)
    np.testing.assert_array_equal(get_backend("cpu").half_matmul(half, np.eye(389)), K)


def test_backends_agree(be, rng):
    X = points(rng, 300, 4, offset=0.3)
    V = rng.normal(size=(300, 3))
    K = REFERENCE.gram(X, None, RBF(0.5))
    np.testing.assert_allclose(be.half_matmul(be.half_gram(X, RBF(0.5)), V), K @ V, rtol=1e-12)
    np.testing.assert_allclose(be.half_matmul(be.half_of(K), V), K @ V, rtol=1e-12)


@pytest.mark.parametrize("kept", [np.float64, np.float32])
def test_half_of_a_matrix(be, kept, rng):
    """The same as half_gram of the kernel that made the matrix; the matrix may go."""
    for n in SIZES:
        A = rng.normal(size=(n, n))
        A += A.T
        (K,) = widened(kept, A)
        V = rng.normal(size=(n, 2))
        for same in (A, np.asfortranarray(A), np.repeat(A, 2, axis=0)[::2]):
            frozen = same.copy(order="K")
            frozen.flags.writeable = False
            half = be.half_of(frozen, kept)
            assert half.dtype == kept
            assert not np.shares_memory(half.entries, frozen)
            assert_product(be.half_matmul(half, V), K, V, (n + 8) * 2.0**-53)


def test_float32_storage_loses_what_rounding_loses(isa, rng):
    """|K32 v - K v| <= 2^-24 |K| |v|: one rounding of every entry, none of the sums."""
    X, V = points(rng, 700, 6, offset=0.3), rng.normal(size=(700, 3))
    cpu = get_backend("cpu")
    exact = cpu.half_matmul(cpu.half_gram(X, RBF(0.5)), V)
    narrow = cpu.half_matmul(cpu.half_gram(X, RBF(0.5), np.float32), V)
    size = cpu.gram(X, None, RBF(0.5)) @ np.abs(V)
    error = np.abs(narrow - exact)
    assert (error <= 2.0**-24 * size * 1.0001).all()
    assert error.max() > 0


def test_what_is_beyond_n_is_zero_whatever_the_kernel_makes_of_zero_rows(isa):
    """κ(x, 0) of padding may overflow where no entry of K does."""
    kernel, X = Polynomial(3, 1.0, -1e110), np.full((5, 4), 5e54)
    assert np.isfinite(get_backend("cpu").gram(X, None, kernel)).all()
    half = get_backend("cpu").half_gram(X, kernel)
    assert np.isfinite(get_backend("cpu").half_matmul(half, np.ones((5, 1)))).all()
    assert (half.entries[0, :16, 5:] == 0).all()
    assert (half.entries[0, 5:16] == 0).all()


def test_same_bits_for_any_number_of_threads(isa, rng, monkeypatch):
    monkeypatch.setattr(threads, "GRAIN_NS", 0)
    monkeypatch.setattr(threads, "BLOCK_NS", (20_000, 20_000))
    X, V = points(rng, 1500, 5, offset=0.3), rng.normal(size=(1500, 5))
    K = get_backend("cpu").gram(X, None, RBF(0.5))
    for dtype in (np.float64, np.float32):
        results = []
        for n_threads in (1, 2, 3, 8):
            cpu = get_backend("cpu", n_threads=n_threads)
            half, same = cpu.half_gram(X, RBF(0.5), dtype), cpu.half_of(K, dtype)
            np.testing.assert_array_equal(half.entries[-1, :16], same.entries[-1, :16])
            results.append([cpu.half_matmul(h, V) for h in (half, same)])
        for products in results:
            for product in products:
                np.testing.assert_array_equal(product, results[0][0])


def test_columns_do_not_depend_on_their_neighbours_beyond_rounding(rng):
    X, V = points(rng, 500, 4, offset=0.3), rng.normal(size=(500, 9))
    cpu = get_backend("cpu")
    half = cpu.half_gram(X, Linear())
    K = cpu.gram(X, None, Linear())
    for q in range(9):
        alone = cpu.half_matmul(half, V[:, q : q + 1])
        assert_product(alone, K, V[:, q : q + 1], 500 * 2.0**-53)


def test_out_and_inputs_of_any_layout(be, rng):
    X, V = points(rng, 200, 4, offset=0.3), rng.normal(size=(200, 6))
    half = be.half_gram(np.asfortranarray(X), RBF(0.5))
    expected = be.half_matmul(half, V)
    frozen = V.copy()
    frozen.flags.writeable = False
    for same in (frozen, np.asfortranarray(V), np.repeat(V, 2, axis=1)[:, ::2], V[::-1][::-1]):
        np.testing.assert_allclose(be.half_matmul(half, same), expected, rtol=1e-12)
    for out in (np.empty((200, 6)), np.empty((200, 6), order="F"), np.empty((200, 12))[:, ::2]):
        assert be.half_matmul(half, V, out=out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_bytes_are_foretold(be, rng):
    for n in (0, 1, 192, 193, 1000, 2500):
        for dtype in (np.float64, np.float32):
            half = be.half_gram(points(rng, n, 2, offset=0.3), RBF(0.5), dtype)
            assert half.nbytes <= be.half_bytes(n, dtype) <= 1.01 * half.nbytes + 64
    whole = 36_000**2 * 8
    assert get_backend("cpu").half_bytes(36_000, np.float64) < 0.51 * whole


def test_refusals(be, rng):
    X = points(rng, 20, 3, offset=0.3)
    half = be.half_gram(X, RBF(1.0))
    with pytest.raises(TypeError, match="half_of"):
        be.half_gram(X, Custom(lambda A, B: A @ B.T))
    for bad in (np.float16, np.int64, np.complex128):
        with pytest.raises(TypeError, match="float32 or float64"):
            be.half_gram(X, RBF(1.0), bad)
    with pytest.raises(TypeError, match="can be stored in float32"):
        be.half_gram(X.astype(np.float32), RBF(1.0), np.float64)
    with pytest.raises(ValueError, match="square"):
        be.half_of(X)
    with pytest.raises(ValueError, match=r"shape \(20, p\)"):
        be.half_matmul(half, np.ones((19, 1)))
    with pytest.raises(ValueError, match=r"shape \(20, p\)"):
        be.half_matmul(half, np.ones(20))
    with pytest.raises(TypeError, match="V must be float64"):
        be.half_matmul(half, np.ones((20, 1), np.float32))
    with pytest.raises(ValueError, match="out must be float64"):
        be.half_matmul(half, np.ones((20, 2)), out=np.empty((20, 1)))


def test_the_border_refuses(rng):
    X = points(rng, 200, 3, offset=0.3)
    shape = _core.half_shape(200)
    assert shape == (3, 192, 192)
    tiles, job = _core.empty_aligned(shape, np.float64), _core.Gram(X, None, RBF(1.0).c_spec)
    job.pack(0, job.n_panels)
    job.half_gram(0, 3, tiles)
    with pytest.raises(ValueError, match="range"):
        job.half_gram(0, 4, tiles)
    with pytest.raises(ValueError, match="shape"):
        job.half_gram(0, 3, tiles[:2])
    shifted = _core.empty_aligned((tiles.size + 1,), np.float64)[1:].reshape(shape)
    with pytest.raises(ValueError, match="64 bytes"):
        job.half_gram(0, 1, shifted)
    with pytest.raises(ValueError, match="number of rows"):
        _core.Gram(X, X, RBF(1.0).c_spec).half_gram(0, 1, tiles)
    narrow = _core.Gram(X.astype(np.float32), None, RBF(1.0).c_spec)
    with pytest.raises(ValueError, match="number of rows"):
        narrow.half_gram(0, 3, tiles)
    Vt, sums = _core.empty_aligned((1, 384), np.float64), np.empty((2, 1, 384))
    Vt[:] = 0
    _core.half_multiply(tiles, 200, Vt, sums, 0, 3)
    assert (sums == 0).all()
    for lo, hi in ((0, 4), (-1, 1), (1, 0)):
        with pytest.raises(ValueError, match="range"):
            _core.half_multiply(tiles, 200, Vt, sums, lo, hi)
    with pytest.raises(ValueError, match="shape"):
        _core.half_multiply(tiles, 100, Vt, sums, 0, 1)
    with pytest.raises(ValueError, match="too small"):
        _core.half_multiply(tiles, 200, Vt[:, :192], sums, 0, 1)
    with pytest.raises(ValueError, match="one row per row"):
        _core.half_multiply(tiles, 200, Vt, np.empty((2, 2, 384)), 0, 1)
    with pytest.raises(TypeError, match="Vt"):
        _core.half_multiply(tiles, 200, Vt.astype(np.float32), sums, 0, 1)


@pytest.mark.parametrize("p", [1, 3, 5, 40])
def test_float32_rows_times_float64_columns(isa, p, rng):
    """gram_matmul of float32 X takes float64 W: its sums are then double throughout."""
    cpu = get_backend("cpu")
    for n, d in ((1, 3), (97, 18), (401, 5), (700, 300)):
        X = points(rng, n, d, np.float32, offset=0.3)
        Z = points(rng, 260, d, np.float32, offset=0.3)
        for other in (None, Z):
            K = cpu.gram(X, other, RBF(0.5)).astype(np.float64)
            W = rng.normal(size=(K.shape[1], p))
            out = np.empty((n, p))
            assert cpu.gram_matmul(X, other, W, RBF(0.5), out=out) is out
            assert_product(out, K, W, (n + 260) * 2.0**-53)
            assert REFERENCE.gram_matmul(X, other, W, RBF(0.5)).dtype == np.float64
    with pytest.raises(TypeError, match="float64"):
        cpu.gram_matmul(X.astype(np.float64), None, np.ones((n, 1), np.float32), RBF(0.5))


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory without backing")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_offsets_beyond_two_to_the_31_entries(isa, dtype, rng):
    """n = 70,000: the last tiles of 2.5e9 entries, whose other pages are never touched."""
    n = 70_000
    tiles, t, _ = shape = _core.half_shape(n)
    assert math.prod(shape) > 2**31
    no_reserve = 0x4000  # mmap.MAP_NORESERVE of newer Pythons
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    try:
        memory = mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize, flags=flags)
    except OSError:
        pytest.skip("this system does not hand out memory that it has not")
    half = np.frombuffer(memory, dtype).reshape(shape)
    X = points(rng, n, 2, dtype, offset=0.3)
    job = _core.Gram(X, None, RBF(0.5).c_spec)
    job.pack(0, job.n_panels)
    job.half_gram(tiles - 3, tiles, half)  # of the last two rows of tiles
    side = -(-n // t)
    last = slice((side - 2) * t, n)
    K = get_backend("cpu").gram(X[last], None, RBF(0.5))
    np.testing.assert_array_equal(half[-3], K[:t, :t])
    np.testing.assert_array_equal(half[-1, : n - (side - 1) * t, : n - (side - 1) * t], K[t:, t:])
    V = np.zeros((1, t * side))
    V[0, last] = rng.normal(size=len(K))
    Vt, sums = _core.empty_aligned(V.shape, np.float64), np.zeros((side, 1, t * side))
    Vt[:] = V
    blocks = side * (side + 1) // 2  # one tile each
    _core.half_multiply(half, n, Vt, sums, blocks - 3, blocks)
    product = sums.sum(axis=0)[:, last].T
    assert_product(product, K.astype(np.float64), V[:, last].T, 400 * 2.0**-53)
