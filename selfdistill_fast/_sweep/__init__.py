"""Sweeps over γ × λ × α × τ: run and store."""
