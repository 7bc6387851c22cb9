"""Chains of self-distilled models of one factorised training set."""
