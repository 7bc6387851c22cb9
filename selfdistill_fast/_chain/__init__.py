"""Chains of self-distilled models on one factorised training set."""
