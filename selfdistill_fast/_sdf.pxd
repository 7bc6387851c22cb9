# The C contract (csrc/sdf.h) for Cython, and the way for other packages to call the loops:
#
#     cimport selfdistill_fast._sdf as sdf
#     cdef const sdf.sdf_api* api = sdf.import_api()
#     api.f64.exp(&x[0], &y[0], n)
#
# Compile with include_dirs=[selfdistill_fast._core.get_include()]; nothing is linked.

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t


cdef extern from "sdf.h" nogil:
    enum:
        SDF_ABI
        SDF_N_KERNELS
        SDF_N_ISAS
        SDF_FILTER_BLOCK
        SDF_COLUMN_BLOCK

    ctypedef enum sdf_status:
        SDF_OK

    ctypedef enum sdf_kernel:
        SDF_RBF
        SDF_LAPLACIAN
        SDF_MATERN12
        SDF_MATERN32
        SDF_MATERN52
        SDF_POLYNOMIAL
        SDF_LINEAR
        SDF_NTK

    ctypedef struct sdf_problem:
        int kernel, degree
        double a, b
        ptrdiff_t n, m, d
        const void* x
        const void* z
        void* out
        ptrdiff_t ld
        int stream

    ctypedef struct sdf_plan:
        int pair, symmetric, centred, streaming, ragged
        ptrdiff_t pad_x, pad_z
        ptrdiff_t panels_x, panels_z
        ptrdiff_t tiles_x, tiles_z, tiles
        ptrdiff_t packed_size_x, packed_size_z, norms_size_x, norms_size_z, pairs_size
        ptrdiff_t scratch_size

    ctypedef struct sdf_buffers:
        void* shift
        void* packed_x
        void* packed_z
        void* norms_x
        void* norms_z
        void* pairs

    ctypedef struct sdf_job:
        sdf_problem problem
        sdf_plan plan
        sdf_buffers buffers

    ctypedef struct sdf_loops:
        int isa, real_size, mr, nr, tile, line, direct
        void (*exp)(const void* x, void* y, ptrdiff_t n) noexcept nogil
        sdf_status (*prepare)(sdf_job* job) noexcept nogil
        sdf_status (*center)(const sdf_job* job) noexcept nogil
        sdf_status (*pack)(const sdf_job* job, ptrdiff_t lo, ptrdiff_t hi) noexcept nogil
        sdf_status (*gram)(
            const sdf_job* job, ptrdiff_t lo, ptrdiff_t hi, void* scratch) noexcept nogil
        sdf_status (*pairs)(const sdf_job* job, ptrdiff_t lo, ptrdiff_t hi) noexcept nogil
        sdf_status (*of_pairs)(
            const sdf_job* job, ptrdiff_t lo, ptrdiff_t hi, void* scratch) noexcept nogil
        sdf_status (*multiply)(
            const sdf_job* job, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1,
            const void* wt, int w_size, ptrdiff_t ldw, ptrdiff_t p,
            double* sum_rows, double* sum_cols, ptrdiff_t lds, void* scratch) noexcept nogil
        sdf_status (*half_gram)(
            const sdf_job* job, ptrdiff_t lo, ptrdiff_t hi, void* half, int half_size,
            void* scratch) noexcept nogil
        sdf_status (*half_multiply)(
            const void* half, ptrdiff_t n, const double* wt, ptrdiff_t ldw, ptrdiff_t p,
            ptrdiff_t parts, ptrdiff_t lo, ptrdiff_t hi,
            double* sums, ptrdiff_t lds) noexcept nogil
        sdf_status (*inner_products)(
            const void* basis, ptrdiff_t k, ptrdiff_t ldb,
            const void* w, ptrdiff_t p, ptrdiff_t ldw, ptrdiff_t n,
            double* sums, ptrdiff_t lds, ptrdiff_t lo, ptrdiff_t hi) noexcept nogil
        sdf_status (*project_out)(
            const void* basis, ptrdiff_t k, ptrdiff_t ldb, const double* h,
            void* w, ptrdiff_t p, ptrdiff_t ldw, ptrdiff_t n,
            ptrdiff_t lo, ptrdiff_t hi) noexcept nogil
        sdf_status (*shrinkage_path)(
            const void* d, ptrdiff_t k, const double* lam, ptrdiff_t n_lam,
            const double* alpha, ptrdiff_t n_steps, void* out,
            ptrdiff_t lo, ptrdiff_t hi) noexcept nogil
        sdf_status (*pure_filters)(
            const void* d, ptrdiff_t k, const double* lam, ptrdiff_t n_lam,
            ptrdiff_t n_steps, void* out, ptrdiff_t lo, ptrdiff_t hi) noexcept nogil

    ctypedef struct sdf_api:
        int abi
        const sdf_loops* f32
        const sdf_loops* f64

    const char* sdf_message(sdf_status status)
    const char* sdf_kernel_name(int kernel)
    const char* sdf_isa_name(int isa)
    const sdf_loops* sdf_loops_of(int isa, int real_size)


cdef inline const sdf_api* import_api() except NULL:
    """The loops that the running selfdistill_fast chose; ImportError for another ABI."""
    from selfdistill_fast import _core
    cdef const sdf_api* api = <const sdf_api*>PyCapsule_GetPointer(
        _core._C_API, b"selfdistill_fast._core._C_API")
    if api.abi != SDF_ABI:
        raise ImportError(
            f"compiled against ABI {SDF_ABI} of selfdistill_fast, which now has {api.abi}: "
            "compile again"
        )
    return api
