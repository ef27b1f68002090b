"""Diffusion: tissue from embeddings and from masks.

`networks` (one module a network), `schedule` (noise, targets, losses), `sampling` (samplers, guidance), `assembly`
(images larger than the network's), `layouts` (published files).
"""
