"""Weights x datasets -> table, statistics, report."""
