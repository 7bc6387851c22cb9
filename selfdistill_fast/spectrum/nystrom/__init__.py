"""Landmark models: kernel ridge regression on the functions κ(·, L) of m landmark rows."""

from selfdistill_fast.spectrum.nystrom.memory import nystrom_bytes
from selfdistill_fast.spectrum.nystrom.solver import NystromSpectrum

__all__ = ["NystromSpectrum", "nystrom_bytes"]
