"""Readers: each knows one published folder layout, and turns its files into samples."""
