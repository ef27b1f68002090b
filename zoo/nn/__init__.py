"""Blocks, norms and layers that several families build from."""
