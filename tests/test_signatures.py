"""The public interface as text, compared with tests/data/signatures.txt.

Every name of ``__all__`` with its parameters (kinds and defaults), and the public members of
classes that this package defines. A change of it is a decision, not an accident: the test shows
the difference, and

    python tests/test_signatures.py

writes the file anew.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

STORED = Path(__file__).parent / "data" / "signatures.txt"
#: public modules, and the package that each needs
MODULES = {
    "selfdistill_fast": "numpy",
    "selfdistill_fast.alpha": "numpy",
    "selfdistill_fast.diagnostics": "numpy",
    "selfdistill_fast.plotting": "matplotlib",
    "selfdistill_fast.trainer": "torch",
}
#: classes that functions return; nobody else makes them, and their constructors are our own
RESULTS = {"DistillationPath", "Plan", "Spectrum", "SweepResult"}


def parameters(function) -> str:
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def member(name: str, value) -> str:
    if isinstance(value, (property, functools.cached_property)):
        return f"    .{name}"
    if isinstance(value, (classmethod, staticmethod)):
        return f"    @{type(value).__name__} .{name}{parameters(value.__func__)}"
    if inspect.isfunction(value):
        return f"    .{name}{parameters(value)}"
    return f"    .{name}"


def described(name: str, value) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"class {name}{'' if name in RESULTS else parameters(value)}"
        members = {}
        for base in reversed(value.__mro__):
            if base.__module__.startswith("selfdistill_fast"):
                members |= dict.fromkeys(inspect.get_annotations(base)) | vars(base)
        yield from (member(n, members[n]) for n in sorted(members) if not n.startswith("_"))
    elif callable(value):
        yield f"{name}{parameters(value)}"
    else:
        yield name


def interface(module: str) -> list[str]:
    public = importlib.import_module(module)
    lines = [f"[{module}]"]
    for name in sorted(public.__all__):
        lines += described(name, getattr(public, name))
    return lines


def stored(module: str) -> list[str]:
    sections = re.split(r"\n\n(?=\[)", STORED.read_text(encoding="utf-8").rstrip())
    return next(s for s in sections if s.startswith(f"[{module}]")).split("\n")


@pytest.mark.parametrize("module", MODULES)
def test_the_public_interface_is_the_stored_one(module):
    pytest.importorskip(MODULES[module])
    difference = "\n".join(
        difflib.unified_diff(stored(module), interface(module), "stored", "now", lineterm="", n=0)
    )
    assert not difference, (
        f"{difference}\nThe public interface has changed. If that is meant, write the stored list "
        "anew by `python tests/test_signatures.py`, and say so in CHANGELOG.md."
    )


if __name__ == "__main__":
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text(
        "\n\n".join("\n".join(interface(module)) for module in MODULES) + "\n", encoding="utf-8"
    )
    print(STORED)
