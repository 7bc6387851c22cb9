"""show_config: complete, printable, and right about slow BLAS kernels."""

from __future__ import annotations

import json

import pytest

from selfdistill_fast import show_config
from selfdistill_fast._backend import cuda_libraries
from selfdistill_fast._backend.blocked import SYRK_ROWS
from selfdistill_fast._config import _cuda_warnings, _notes, _warnings


def test_report_is_complete_and_json():
    report = show_config()
    assert json.loads(json.dumps(report)) == report
    for line in ("our C loops", "processor", "memory available", "GPU", "numpy"):
        assert line in report.table()
    assert report.table() in str(report)
    # the package does not import without its C loops: nothing is said of doing without
    assert set(report["isa"]) == {"chosen", "available", "SDF_ISA"}
    assert report["isa"]["chosen"] in report["isa"]["available"]
    for warning in report["warnings"]:
        assert warning in str(report)


def test_report_does_not_import_heavy_packages():
    import subprocess
    import sys

    code = (
        "import sys; from selfdistill_fast import show_config; show_config();"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
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
                },
                "cpu": {"model": "made up", "isa": cpu},
                "blas": [blas, {**blas, "file": "/lib/libother.so"}],
            }
        )

    return warnings


@pytest.mark.parametrize(
    ("cpu", "library", "kernels", "isa", "hint"),
    [
        ("avx512", "openblas", "Haswell", "avx2", "OPENBLAS_CORETYPE=SkylakeX"),
        ("avx512", "openblas", "Zen", "avx2", "OPENBLAS_CORETYPE=SkylakeX"),
        ("avx512", "openblas", "Prescott", "sse", "OPENBLAS_CORETYPE=SkylakeX"),
        ("avx2", "openblas", "Nehalem", "sse", "OPENBLAS_CORETYPE=Haswell"),
        ("avx512", "blis", "haswell", "avx2", "BLIS_ARCH_TYPE=skx"),
    ],
)
def test_slower_kernels_than_the_processor_has(report, cpu, library, kernels, isa, hint):
    (warning,) = report(cpu, library, kernels, isa)
    assert hint in warning
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


# ------------------------------------------------------------------ BLAS that crashes
@pytest.mark.parametrize(
    ("isa", "threads", "works", "crashes"),
    [
        ("avx512", 2, 15000, 16000),
        ("avx2", 2, 20000, 23500),
        ("avx512", 48, 75000, 80000),
    ],
)
def test_rows_from_which_syrk_crashes_agree_with_what_was_seen(isa, threads, works, crashes):
    blas = {"library": "openblas", "version": "0.3.30", "kernels": "some", "isa": isa,
            "threads": threads, "file": "/lib/libblas.so"}  # fmt: skip
    (note,) = _notes({"blas": [blas]})
    rows = int(note.partition(" rows in syrk")[0].rpartition(" ")[2].replace(",", ""))
    assert works < rows < crashes
    assert works / 3 > SYRK_ROWS
    assert f"{SYRK_ROWS:,} rows" in note
    assert "libblas.so" in note


@pytest.mark.parametrize("change", [{"threads": 1}, {"library": "mkl"}, {"isa": None}])
def test_no_note_where_nothing_is_known(change):
    blas = {"library": "openblas", "version": "0.3.30", "kernels": "Haswell", "isa": "avx2",
            "threads": 2, "file": "/lib/libblas.so"} | change  # fmt: skip
    assert _notes({"blas": [blas]}) == []


# ------------------------------------------------------------------ CUDA
@pytest.mark.parametrize(
    ("driver", "cupy", "torch", "words"),
    [
        (None, {}, "13", []),
        ("13.0", {"cupy-cuda13x": 13}, "13", []),
        ("13.0", {"cupy-cuda12x": 12}, None, []),
        ("13.0", {"cupy": None}, "13", []),
        ("13.0", {"cupy-cuda12x": 12}, "13", ["two majors", "extra cuda13 goes"]),
        ("12.4", {"cupy-cuda12x": 12}, "13", ["two majors", "torch cannot use it"]),
        ("12.4", {"cupy-cuda13x": 13}, "13", ["supports CUDA 12.4", "cuda12]"]),
        ("13.0", {"cupy-cuda12x": 12, "cupy-cuda13x": 13}, "13", ["overwrite each other"]),
    ],
)
def test_cuda_of_two_majors(monkeypatch, driver, cupy, torch, words):
    version = None if driver is None else tuple(map(int, driver.split(".")))
    monkeypatch.setattr(cuda_libraries, "driver_version", lambda: version)
    found = _cuda_warnings({"driver": driver, "cupy": cupy, "torch": torch})
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


class Distribution:
    def __init__(self, version="1", requires=()):
        self.version, self.requires = version, list(requires)


@pytest.mark.parametrize(
    ("version", "requires", "installed", "major"),
    [
        (None, [], [], None),
        ("2.9.1+cpu", [], [], None),
        ("2.6.0+cu124", [], [], 12),
        ("2.14.1", ["numpy", "nvidia-cudnn-cu13==9.2; sys_platform == 'linux'"],
         ["nvidia-cudnn-cu13"], 13),
        ("2.14.1", ["nvidia-cudnn-cu13==9.2"], [], None),
        ("2.6.0", ["nvidia-cuda-nvrtc-cu12==12.4"], ["nvidia-cuda-nvrtc-cu12"], 12),
    ],
)  # fmt: skip
def test_cuda_of_torch(monkeypatch, version, requires, installed, major):
    found = {name: Distribution() for name in installed}
    monkeypatch.setattr(
        cuda_libraries, "_distribution", {"torch": Distribution(version, requires), **found}.get
    )
    assert cuda_libraries.torch_major() == major


def test_every_nvrtc_is_reported(monkeypatch, tmp_path):
    """Those of pip's packages first; files that are the same under two names once."""
    for folder, version in (("cuda_nvrtc", "12"), ("cu13", "13")):
        lib = tmp_path / "nvidia" / folder / "lib"
        lib.mkdir(parents=True)
        (lib / f"libnvrtc.so.{version}").touch()
        (lib / f"libnvrtc-builtins.so.{version}.0").touch()
    monkeypatch.setenv("CUDA_HOME", "")  # not the working directory
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libnvrtc.so.99").touch()
    monkeypatch.chdir(tmp_path)
    toolkit = tmp_path / "toolkit" / "lib64"
    toolkit.mkdir(parents=True)
    (toolkit / "libnvrtc.so.12.9.86").touch()
    (toolkit / "libnvrtc.so.12").symlink_to("libnvrtc.so.12.9.86")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "nvidia")]})
    find_spec = cuda_libraries.importlib.util.find_spec
    monkeypatch.setattr(
        cuda_libraries.importlib.util,
        "find_spec",
        lambda name: spec if name == "nvidia" else find_spec(name),
    )
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    report = show_config()
    found = report["gpu"]["nvrtc"]
    versions = [one["version"] for one in found]
    assert versions[:2] == ["13", "12"]
    assert versions.count("12.9.86") == 1
    assert "99" not in versions
    for one in found:
        assert f"  NVRTC {one['version']}" in report.table()
        assert one["file"] in report.table()
