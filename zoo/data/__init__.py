"""Datasets: cards and readers, transforms, sampling, batching, the phantom."""
