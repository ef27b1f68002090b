"""Stain matrices, normalisation, augmentation: pure functions."""
