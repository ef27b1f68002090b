"""Large images: reading, windows, stitching, streaming writers."""
