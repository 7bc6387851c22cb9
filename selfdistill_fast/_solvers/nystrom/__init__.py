"""Landmark models: kernel ridge regression on the functions κ(·, L) of m landmark rows."""

from selfdistill_fast._solvers.nystrom.memory import nystrom_bytes
from selfdistill_fast._solvers.nystrom.solver import NystromSpectrum

__all__ = ["NystromSpectrum", "nystrom_bytes"]
