"""The rooms of the package and the doors between them; what importing it drags in."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import selfdistill_fast

PACKAGE = Path(selfdistill_fast.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "build" not in path.parts
}

#: room -> rooms it may import; data flow the other way
BELOW_SOLVERS = {"kernels", "_names", "_html", "_backend", "_gram", "_ranges"}
CHAIN = ["filters", "columns", "leave_out", "selection", "explosion", "io", "path", "assembly"]
CHAIN = [f"_chain.{name}" for name in [*CHAIN, "constrained"]]
LAYERS = {
    "_validation": set(),
    "kernels": set(),
    "_names": {"kernels"},  # types of arguments
    "_html": set(),
    "alpha": set(),
    "_files": set(),
    "_backend": {"kernels"},
    "_ranges": {"kernels"},
    "_gram": {"kernels", "_names", "_backend", "_ranges"},
    "_solvers": BELOW_SOLVERS,
    **{
        room: BELOW_SOLVERS | {"_solvers", "alpha", "_files", *CHAIN[:number]}
        for number, room in enumerate(CHAIN)
    },
}
LAYERS["diagnostics"] = BELOW_SOLVERS | {"_solvers", "alpha", "_chain.filters"}
LAYERS["_evaluation"] = LAYERS["_chain.leave_out"] | {"_chain.leave_out"}
LAYERS["plotting"] = LAYERS["diagnostics"] | {"diagnostics", "_evaluation"}
LAYERS["trainer"] = {"alpha", "_files", "_html"}
LAYERS["_sweep"] = LAYERS["_chain.constrained"] | {"plotting"}  # .plot() draws
LAYERS["estimators"] = LAYERS["_chain.constrained"] | {"plotting"}  # .plot() draws
#: what speaks only in the backend's verbs and its array namespace
SOLVERS = ["_ranges", "_gram", "_chain.filters", "_chain.columns", "_chain.leave_out"]
SOLVERS += [name for name in FILES if name.startswith("_solvers")]


def room(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "_chain" else parts[0]


def imports(name):
    """Modules of this package that a file imports, by their first part; "_core" included.

    What only a type checker imports is left out: the name of a type is no flow of data.
    """
    found, tree = set(), ast.parse(FILES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["selfdistill_fast", *name.split(".")]
            inside = package[: len(package) - node.level + name.endswith("__init__")]
            base = ".".join(inside + ([node.module] if node.module else []))
            base = base if node.level else node.module
            found |= {base} | {f"{base}.{a.name}" for a in node.names}
    prefix = "selfdistill_fast."
    return {m.removeprefix(prefix) for m in found if m.startswith(prefix)}


@pytest.mark.parametrize("name", FILES)
def test_imports_run_against_the_data_flow(name):
    here = room(name)
    if here not in LAYERS:
        pytest.skip("not a room of the numerical core")
    modules = {room(other) for other in FILES} | {"_core"}
    used = {room(other) for other in imports(name)} & modules - {here}
    allowed = LAYERS[here] | {"_validation"} | ({"_core"} if here == "_backend" else set())
    assert used <= allowed, f"{name} imports {sorted(used - allowed)}"


def test_the_layers_have_no_cycle_and_every_room_exists():
    done = []
    while len(done) < len(LAYERS):
        ready = [r for r, below in LAYERS.items() if r not in done and below <= set(done)]
        assert ready, "cycle"
        done += ready
    assert set(LAYERS) <= {room(name) for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_only_the_backend_touches_the_compiled_module(name):
    if room(name) in ("_backend", "_config"):  # config reports what was compiled
        assert "selfdistill_fast" not in imports(name)
    else:
        assert not any(other.split(".")[0] == "_core" for other in imports(name))


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_speak_to_the_backend(name):
    """No linear algebra of their own: a GPU backend must not need a rewrite."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith(("scipy", "numpy.linalg")), alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert not (node.module or "").startswith("scipy"), node.module
            if node.module == "numpy.linalg":
                assert [a.name for a in node.names] == ["LinAlgError"]
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "linalg"
        ):
            assert node.attr == "LinAlgError", f"{name}:{node.lineno} uses linalg.{node.attr}"


def test_alpha_is_a_leaf():
    files = [name for name in FILES if room(name) == "alpha"]
    used = {room(other) for name in files for other in imports(name)}
    assert used & {room(name) for name in FILES} <= {"_validation", "alpha"}


@pytest.mark.parametrize("name", [name for name in FILES if room(name) != "trainer"])
def test_torch_lives_in_the_trainer(name):
    """The only torch imports; elsewhere its arrays are known by what they can do."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(module.split(".")[0] == "torch" for module in modules)


def test_backends_have_the_same_signatures():
    """Every backend has the verbs of the abstract one, with the same parameters."""
    from selfdistill_fast._backend import Backend, get_backend

    fast = type(get_backend("cpu"))
    verbs = [v for v, f in vars(Backend).items() if inspect.isfunction(f) and v[0] != "_"]
    assert {"gram", "gram_matmul", "eigh", "asarray"} <= set(verbs)
    assert issubclass(fast, Backend)
    for verb in verbs:
        ours, theirs = (inspect.signature(getattr(c, verb)) for c in (fast, Backend))
        assert list(ours.parameters) == list(theirs.parameters), verb
        for a, b in zip(ours.parameters.values(), theirs.parameters.values(), strict=True):
            assert (a.kind, a.default) == (b.kind, b.default), f"{verb}({a.name})"


def test_every_public_name_exists_and_has_a_docstring():
    for name in selfdistill_fast.__all__:
        assert inspect.getdoc(getattr(selfdistill_fast, name)), name
    assert set(selfdistill_fast.__all__) <= set(dir(selfdistill_fast))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = selfdistill_fast.no_such_name


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_drags_in_nothing_heavy():
    heavy = ["torch", "cupy", "matplotlib", "pandas", "sklearn", "typer", "rich", "pyarrow"]
    heavy += [
        "xarray",
        "zarr",
        "dask",
        "distributed",
        "filelock",
        "tqdm",
        "threadpoolctl",
        "pydantic",
    ]
    code = f"import selfdistill_fast, sys; print(*(set({heavy}) & set(sys.modules)))"
    assert run(code) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to count threads")
def test_importing_starts_no_thread():
    code = (
        "import os, numpy, scipy.linalg\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "import selfdistill_fast\n"
        "print(before, len(os.listdir('/proc/self/task')))"
    )
    before, after = run(code)
    assert before == after


def test_the_estimator_is_imported_when_it_is_used():
    code = (
        "import selfdistill_fast as s, sys\n"
        "assert 'sklearn' not in sys.modules\n"
        "s.SelfDistilledKernelRidge\n"
        "print('sklearn' in sys.modules)"
    )
    assert run(code) == ["True"]
