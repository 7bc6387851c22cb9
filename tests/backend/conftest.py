"""Fixtures of the backends' tests."""

from __future__ import annotations

import pytest

from selfdistill_fast import _core


@pytest.fixture(params=_core.isa_available())
def isa(request):
    """Every instruction set of this build and processor in turn."""
    before = _core.isa()
    _core._use_isa(request.param)
    yield request.param
    _core._use_isa(before)
