"""show_config: complete, printable, and right about slow BLAS kernels."""

from __future__ import annotations

import json

import pytest

from selfdistill_fast import show_config
from selfdistill_fast.config import _warnings


def test_report_is_complete_and_json():
    report = show_config()
    assert json.loads(json.dumps(report)) == report
    for line in ("our C loops", "processor", "memory available", "GPU", "numpy"):
        assert line in report.table()
    assert report.table() in str(report)
    for warning in report["warnings"]:
        assert warning in str(report)


def test_report_does_not_import_heavy_packages():
    import subprocess
    import sys

    code = (
        "import sys; from selfdistill_fast import show_config; show_config();"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def report(monkeypatch):
    """A report of a made-up machine: (processor, library, kernels, their ISA) -> warnings."""
    for variable in ("OPENBLAS_CORETYPE", "BLIS_ARCH_TYPE"):
        monkeypatch.delenv(variable, raising=False)

    def warnings(cpu, library, kernels, isa, sdf_isa=None, chosen="avx512"):
        blas = {"library": library, "kernels": kernels, "isa": isa, "file": "/lib/libblas.so"}
        return _warnings(
            {
                "isa": {
                    "chosen": chosen,
                    "available": ["generic", "avx2", "avx512"],
                    "SDF_ISA": sdf_isa,
                    "error": None,
                },
                "cpu": {"model": "made up", "isa": cpu},
                "blas": [blas, {**blas, "file": "/lib/libother.so"}],
            }
        )

    return warnings


@pytest.mark.parametrize(
    ("cpu", "library", "kernels", "isa", "cure"),
    [
        ("avx512", "openblas", "Haswell", "avx2", "OPENBLAS_CORETYPE=SkylakeX"),
        ("avx512", "openblas", "Zen", "avx2", "OPENBLAS_CORETYPE=SkylakeX"),
        ("avx512", "openblas", "Prescott", "sse", "OPENBLAS_CORETYPE=SkylakeX"),
        ("avx2", "openblas", "Nehalem", "sse", "OPENBLAS_CORETYPE=Haswell"),
        ("avx512", "blis", "haswell", "avx2", "BLIS_ARCH_TYPE=skx"),
    ],
)
def test_slower_kernels_than_the_processor_has(report, cpu, library, kernels, isa, cure):
    (warning,) = report(cpu, library, kernels, isa)
    assert cure in warning
    assert f"{kernels} kernels" in warning
    assert "libblas.so, libother.so" in warning


@pytest.mark.parametrize(
    ("cpu", "library", "kernels", "isa"),
    [
        ("avx512", "openblas", "SkylakeX", "avx512"),
        ("avx2", "openblas", "Zen", "avx2"),
        ("avx2", "openblas", "SkylakeX", "avx512"),
        ("avx512", "mkl", None, None),
        (None, "openblas", "armv8", None),
    ],
)
def test_no_warning_where_all_is_well(report, cpu, library, kernels, isa):
    assert report(cpu, library, kernels, isa) == []


def test_what_was_asked_for_is_named(report, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    (warning,) = report("avx512", "openblas", "Haswell", "avx2")
    assert "it is now set to Haswell" in warning
    (warning,) = report("avx512", "mkl", None, None, sdf_isa="generic", chosen="generic")
    assert "SDF_ISA=generic" in warning
