"""Whole-slide multiple-instance learning: ACMIL and its baselines."""
