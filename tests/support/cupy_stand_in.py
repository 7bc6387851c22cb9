"""A stand-in for CuPy that is as strict as CuPy where it matters, on memory of the host.

An array is no NumPy array and never turns into one by itself; it does not mix with NumPy
arrays in arithmetic, indices or assignments; reductions and elements are 0-d arrays; functions
have the arguments that CuPy's have. Raw pointers go to kernels.cu, compiled for the host, and
to the BLAS and LAPACK of SciPy, whose argument lists cuBLAS and cuSOLVER share. So what runs here,
runs without mixing devices, and hands CuPy what it expects; not tested are CuPy itself and
everything that is concurrent on a device.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import operator
import struct
import threading
import types

import numpy as np

# ------------------------------------------------------------------------------- arrays


class _Current(threading.local):
    """The current device of each thread, as a list of one."""

    number = 0

    def __getitem__(self, _):
        return self.number

    def __setitem__(self, _, number):
        self.number = number


_device = _Current()
_memory = {"free": 8 << 30, "total": 16 << 30}
_ALLOWED_SCALARS = (bool, int, float, complex, np.generic)


def _bare(value, what="operand"):
    """The NumPy array behind a stand-in's array; numbers as they are; TypeError else."""
    if isinstance(value, Array):
        if value.device.id != _device[0]:
            raise ValueError(f"array on device {value.device.id}, current device {_device[0]}")
        return value._a
    if isinstance(value, _ALLOWED_SCALARS) or value is None:
        return value
    raise TypeError(f"Unsupported type {type(value)} as {what}")


class _OnHost:
    """What says that it lies on a device, for NumPy."""

    def __init__(self, a):
        self._a = a

    def __dlpack__(self, **options):
        return self._a.__dlpack__(**options)

    def __dlpack_device__(self):
        return 1, 0


def _wrap(result):
    if isinstance(result, tuple):
        return tuple(_wrap(part) for part in result)
    return Array(np.asarray(result))


def _key(key):
    if isinstance(key, tuple):
        return tuple(_key(part) for part in key)
    if isinstance(key, (slice, list, type(None), type(Ellipsis), int, np.integer)):
        return key
    return _bare(key, "index")


class Array:
    """What ``cupy.ndarray`` is to solver code."""

    __array_ufunc__ = None  # NumPy's operators give way to ours, which refuse them
    __hash__ = None

    def __init__(self, a):
        self._a = a
        self.device = types.SimpleNamespace(id=_device[0])

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    # what describes it
    shape = property(lambda self: self._a.shape)
    ndim = property(lambda self: self._a.ndim)
    dtype = property(lambda self: self._a.dtype)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    strides = property(lambda self: self._a.strides)
    T = property(lambda self: _wrap(self._a.T))
    data = property(lambda self: types.SimpleNamespace(ptr=self._a.ctypes.data))

    @property
    def flags(self):
        flags = self._a.flags
        return types.SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata
        )

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self._a)

    def __float__(self):
        return float(self._a)

    def __int__(self):
        return int(self._a)

    def __index__(self):
        return operator.index(self._a)

    def __repr__(self):
        return f"Array({self._a!r})"

    def __getitem__(self, key):
        part = _wrap(self._a[_key(key)])
        part.device = self.device  # a view lies where its owner does
        return part

    def __setitem__(self, key, value):
        self._a[_key(key)] = _bare(value, "value")

    def __dlpack_device__(self):
        return 2, self.device.id

    # what leaves the device
    def get(self):
        return self._a.copy()

    def tolist(self):
        return self._a.tolist()

    def item(self, *args):
        return self._a.item(*args)

    # what stays
    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        return _wrap(self._a.astype(dtype, order=order, copy=copy))

    def copy(self, order="C"):
        return _wrap(self._a.copy(order=order))

    def reshape(self, *shape):
        return _wrap(self._a.reshape(*shape))

    def ravel(self):
        return _wrap(self._a.ravel())

    def transpose(self, *axes):
        return _wrap(self._a.transpose(*axes))

    def set(self, arr, stream=None):
        assert isinstance(arr, np.ndarray), type(arr)
        assert (arr.shape, arr.dtype) == (self.shape, self.dtype)
        if stream is None:
            self._a[...] = arr
        else:
            self._a.fill(77)  # what is there before the copy
            stream.pending.append((self._a, arr))

    def fill(self, value):
        self._a.fill(_bare(value))

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return _wrap(self._a.sum(axis, dtype, keepdims=keepdims))

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return _wrap(self._a.mean(axis, dtype, keepdims=keepdims))

    def std(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return _wrap(self._a.std(axis, dtype, ddof=ddof, keepdims=keepdims))

    def max(self, axis=None, out=None, keepdims=False):
        return _wrap(self._a.max(axis, keepdims=keepdims))

    def min(self, axis=None, out=None, keepdims=False):
        return _wrap(self._a.min(axis, keepdims=keepdims))

    def any(self, axis=None, out=None, keepdims=False):
        return _wrap(self._a.any(axis, keepdims=keepdims))

    def all(self, axis=None, out=None, keepdims=False):
        return _wrap(self._a.all(axis, keepdims=keepdims))

    def argmax(self, axis=None):
        return _wrap(self._a.argmax(axis))

    def argmin(self, axis=None):
        return _wrap(self._a.argmin(axis))

    def cumsum(self, axis=None):
        return _wrap(self._a.cumsum(axis))

    def nonzero(self):
        return _wrap(self._a.nonzero())

    def squeeze(self, axis=None):
        return _wrap(self._a.squeeze(axis))


def _binary(name):
    function = getattr(operator, name)

    def method(self, other):
        if isinstance(other, (np.ndarray, list, tuple)):
            raise TypeError(f"Unsupported type {type(other)}")
        if not isinstance(other, (Array, *_ALLOWED_SCALARS)):
            return NotImplemented
        return _wrap(function(_bare(self), _bare(other)))

    def reflected(self, other):
        if isinstance(other, (np.ndarray, list, tuple)):
            raise TypeError(f"Unsupported type {type(other)}")
        if not isinstance(other, _ALLOWED_SCALARS):
            return NotImplemented
        return _wrap(function(other, _bare(self)))

    def in_place(self, other):
        self._a[...] = function(_bare(self), _bare(other))
        return self

    return method, reflected, in_place


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_",
              "xor"):  # fmt: skip
    _short = _name.rstrip("_")
    _methods = _binary(_name)
    for _prefix, _method in zip(("__", "__r", "__i"), _methods, strict=True):
        setattr(Array, f"{_prefix}{_short}__", _method)
for _name in ("lt", "le", "eq", "ne", "gt", "ge"):
    setattr(Array, f"__{_name}__", _binary(_name)[0])


def _unary(name):
    return lambda self: _wrap(getattr(operator, name)(self._a))


for _name in ("neg", "pos", "abs", "invert"):
    setattr(Array, f"__{_name}__", _unary(_name))


# ---------------------------------------------------------------------------- namespace


def _function(name):
    function = getattr(np, name)

    def call(*args, **kwargs):
        sequences = name in ("stack", "concatenate", "vstack", "hstack", "column_stack")
        bare = [
            [_bare(part) for part in arg]
            if sequences and isinstance(arg, (list, tuple))
            else arg
            if isinstance(arg, str) or (isinstance(arg, (tuple, type, np.dtype, list)) and i > 0)
            else _bare(arg, f"argument of {name}")
            for i, arg in enumerate(args)
        ]
        for key, value in kwargs.items():
            if key in ("out", "where", "initial") or isinstance(value, np.ndarray):
                raise TypeError(f"{name}: {key} is not taken here")
        return _wrap(function(*bare, **kwargs))

    call.__name__ = name
    return call


#: functions that solvers use: all of them are CuPy's, with these arguments
FUNCTIONS = [
    "abs", "square", "sqrt", "exp", "ldexp", "log", "sin", "cos", "arcsin", "arctan2", "sign",
    "power", "maximum", "minimum", "where", "isfinite", "isnan", "clip", "sum", "mean", "cumsum",
    "any", "all", "argmax", "argmin", "argsort", "sort", "nonzero", "argwhere", "flatnonzero",
    "unique",
    "searchsorted", "trace", "diagonal", "diag", "triu", "tril", "tensordot", "einsum", "dot",
    "matmul", "outer", "moveaxis", "swapaxes", "repeat", "tile", "stack", "concatenate", "vstack",
    "hstack", "column_stack", "ravel", "reshape", "transpose", "zeros_like", "ones_like",
    "empty_like", "full_like", "broadcast_to", "ascontiguousarray", "asfortranarray", "atleast_1d",
]  # fmt: skip


class CUDARuntimeError(RuntimeError):
    """As CuPy's: a RuntimeError that names the CUDA error."""


class OutOfMemoryError(MemoryError):
    """As CuPy's: a MemoryError."""


def _creation(name):
    function = getattr(np, name)

    def call(shape, dtype=float, order="C"):
        return _wrap(function(shape, dtype, order))

    return call


def _asarray(a, dtype=None, order="K", copy=None):
    if not isinstance(a, Array):  # what comes from the host is copied
        return _wrap(np.array(a, dtype=dtype, order=order))
    return _wrap(np.array(a._a, dtype=dtype, order=order, copy=copy))


def _array(a, dtype=None, copy=True, order="K"):
    bare = a._a if isinstance(a, Array) else a
    return _wrap(np.array(bare, dtype=dtype, order=order, copy=copy))


class RawModule:
    """kernels.cu on the host: see cuda/host.h."""

    def __init__(self, *, code, options=()):
        (bits,) = (int(o.removeprefix("-DSDF_BITS=")) for o in options if "SDF_BITS" in o)
        self.code, self.bits = code, bits

    def get_function(self, name):
        from cuda_build import run_on_host

        def kernel(grid, block, args):
            assert all(isinstance(size, int) and 0 < size < 2**31 for size in grid), grid
            assert len(grid) < 2 or grid[1] < 65536
            (threads,) = block
            run_on_host(self.code, self.bits, name, grid, threads, [_word(a) for a in args])

        return kernel


def _word(argument):
    """A kernel's argument as CuPy passes it: a pointer, an int64 or a float64."""
    if isinstance(argument, Array):
        return argument.data.ptr
    if type(argument) is int:
        return argument
    if type(argument) is float:
        return struct.unpack("q", struct.pack("d", argument))[0]
    raise TypeError(f"Unsupported type {type(argument)}")


# ------------------------------------------------- cuBLAS and cuSOLVER by BLAS and LAPACK


def _routine(module, name):
    capsule = module.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = (
        ctypes.c_char_p,
        [ctypes.py_object],
    )
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))

    def call(*arguments):
        """Characters and integers by reference, as Fortran wants them; Pointer as it is."""
        held = [
            ctypes.c_char(a.encode()) if isinstance(a, str)
            else ctypes.c_int(a) if isinstance(a, int) else a
            for a in arguments
        ]  # fmt: skip
        passed = [h.address if isinstance(h, Pointer) else ctypes.addressof(h) for h in held]
        ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(passed))(pointer)(*passed)

    return call


class Pointer:
    """An address that is passed on unchanged."""

    def __init__(self, address):
        self.address = int(address)


def _cublas():
    from scipy.linalg import cython_blas

    fill, trans, side = {0: "L", 1: "U"}, {0: "N", 1: "T"}, {0: "L", 1: "R"}
    found = types.SimpleNamespace(
        CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_FILL_MODE_LOWER=0, CUBLAS_FILL_MODE_UPPER=1,
        CUBLAS_SIDE_LEFT=0, CUBLAS_SIDE_RIGHT=1, CUBLAS_DIAG_NON_UNIT=0, CUBLAS_DIAG_UNIT=1,
    )  # fmt: skip

    def gemm(name):
        routine = _routine(cython_blas, name)

        def call(handle, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
            routine(
                trans[ta], trans[tb], m, n, k, Pointer(alpha), Pointer(a), lda, Pointer(b), ldb,
                Pointer(beta), Pointer(c), ldc,
            )  # fmt: skip

        return call

    def trsm(name):
        routine = _routine(cython_blas, name)

        def call(handle, at, uplo, ta, diag, m, n, alpha, a, lda, b, ldb):
            routine(
                side[at], fill[uplo], trans[ta], "U" if diag else "N", m, n, Pointer(alpha),
                Pointer(a), lda, Pointer(b), ldb,
            )  # fmt: skip

        return call

    found.dgemm, found.sgemm = gemm("dgemm"), gemm("sgemm")
    found.dtrsm, found.strsm = trsm("dtrsm"), trsm("strsm")
    return found


def _cusolver():
    from scipy.linalg import cython_lapack

    letter = {0: "s", 1: "d"}
    found = types.SimpleNamespace(
        CUSOLVER_EIG_MODE_VECTOR=1, createParams=lambda: 1, destroyParams=lambda params: None
    )

    def sizes(n, kind):
        return (1 + 6 * n + 2 * n * n) * (8 if kind else 4), (3 + 5 * n) * 4

    def xsyevd_buffer(handle, params, jobz, uplo, n, kind, a, lda, kind_w, w, kind_c):
        assert (jobz, kind_w, kind_c) == (1, kind, kind)
        return sizes(n, kind)

    def xsyevd(
        handle, params, jobz, uplo, n, kind, a, lda, kind_w, w, kind_c, work, size, host, host_size,
        info,
    ):  # fmt: skip
        assert (size, host_size) == sizes(n, kind)
        _routine(cython_lapack, f"{letter[kind]}syevd")(
            "V", "UL"[uplo == 0], n, Pointer(a), lda, Pointer(w), Pointer(work),
            size // (8 if kind else 4), Pointer(host), host_size // 4, Pointer(info),
        )  # fmt: skip

    def potrf(name):
        routine = _routine(cython_lapack, name)

        def call(handle, uplo, n, a, lda, work, size, info):
            routine("UL"[uplo == 0], n, Pointer(a), lda, Pointer(info))

        return call

    found.xsyevd, found.xsyevd_bufferSize = xsyevd, xsyevd_buffer
    found.dpotrf, found.spotrf = potrf("dpotrf"), potrf("spotrf")
    found.dpotrf_bufferSize = found.spotrf_bufferSize = lambda handle, uplo, n, a, lda: 7
    return found


def _cuda(count):
    class Device:
        def __init__(self, number=0):
            self.id = int(number)

        def __enter__(self):
            self._before, _device[0] = _device[0], self.id
            return self

        def __exit__(self, *error):
            _device[0] = self._before

        def use(self):
            _device[0] = self.id

        def synchronize(self):
            pass

    class Stream:
        """Copies are done when somebody waits for them: one that nobody waits for is never seen."""

        def __init__(self, non_blocking=False):
            self.pending = []

        def record(self):
            return Event(self)

        def wait_event(self, event):
            event.synchronize()

    class Event:
        def __init__(self, stream):
            self.stream, self.count = stream, len(stream.pending)

        def synchronize(self):
            for i in range(self.count):
                if self.stream.pending[i] is not None:
                    target, source = self.stream.pending[i]
                    target[...] = source
                    self.stream.pending[i] = None

    current = Stream()
    cuda = types.ModuleType("cupy.cuda")
    cuda.Stream, cuda.get_current_stream = Stream, lambda: current
    cuda.alloc_pinned_memory = bytearray
    cuda.Device = Device
    cuda.device = types.SimpleNamespace(
        get_cublas_handle=lambda: 1, get_cusolver_handle=lambda: 1, Device=Device
    )
    cuda.runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, CUDA_R_32F=0, CUDA_R_64F=1,
        getDeviceCount=lambda: count, getDevice=lambda: _device[0],
        memGetInfo=lambda: (_memory["free"], _memory["total"]),
        driverGetVersion=lambda: 12040, runtimeGetVersion=lambda: 12020,
        getDeviceProperties=lambda number: {
            "name": b"stand-in", "totalGlobalMem": _memory["total"], "major": 9, "minor": 0,
            "multiProcessorCount": 132,
        },
    )  # fmt: skip
    cuda.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cuda.cublas, cuda.cusolver = _cublas(), _cusolver()
    return cuda


def make(count=1):
    """A module that can stand in ``sys.modules["cupy"]``, with ``count`` devices."""
    xp = types.ModuleType("cupy")
    xp.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    xp.__version__ = "stand-in"
    xp.ndarray = Array
    for name in FUNCTIONS:
        setattr(xp, name, _function(name))
    for name in ("empty", "zeros", "ones"):
        setattr(xp, name, _creation(name))
    xp.full = lambda shape, value, dtype=None: _wrap(np.full(shape, _bare(value), dtype))
    xp.arange = lambda *args, dtype=None: _wrap(np.arange(*args, dtype=dtype))
    xp.linspace = lambda *args, dtype=None: _wrap(np.linspace(*args, dtype=dtype))
    xp.eye = lambda n, m=None, k=0, dtype=float: _wrap(np.eye(n, m, k, dtype))
    xp.asarray, xp.array = _asarray, _array
    xp.from_dlpack = lambda a: a if isinstance(a, Array) else _wrap(np.from_dlpack(_OnHost(a)))
    xp.asnumpy = lambda a: a.get() if isinstance(a, Array) else np.asarray(a)
    xp.may_share_memory = lambda a, b: np.may_share_memory(a._a, b._a)
    for name in ("finfo", "promote_types", "dtype", "float32", "float64", "int32", "int64", "int8",
                 "bool_", "inf", "nan", "pi", "newaxis"):  # fmt: skip
        setattr(xp, name, getattr(np, name))
    xp.linalg = types.SimpleNamespace(
        qr=lambda a: _wrap(tuple(np.linalg.qr(_bare(a)))),
        svd=lambda a, full_matrices=True: _wrap(tuple(np.linalg.svd(_bare(a), full_matrices))),
    )  # and no LinAlgError
    xp.RawModule = RawModule
    xp.cuda = _cuda(count)
    pool = types.SimpleNamespace(
        free_bytes=lambda: 0,
        used_bytes=lambda: 0,
        get_limit=lambda: 0,
        free_all_blocks=lambda: None,
    )
    xp.get_default_memory_pool = lambda: pool
    return xp
