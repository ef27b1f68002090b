"""Metrics: pure functions on tensors and arrays."""
