"""An adversarial image-to-image family from another package: three players, and computation that they share."""

from zoo import registry

registry.table("reader").setdefault("toy-squares", "toy_squares:Squares")
