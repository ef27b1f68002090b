"""Synthetic tissue whose truth is known to the pixel: a layout says what is where, renderers stain and light it."""
