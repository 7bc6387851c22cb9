"""Spectra of models in feature space, from one pass over blocks of rows."""

from selfdistill_fast._solvers.feature_space.blocks import FeatureMap, Sums, block_rows
from selfdistill_fast._solvers.feature_space.spectrum import FeatureSpectrum

__all__ = ["FeatureMap", "FeatureSpectrum", "Sums", "block_rows"]
