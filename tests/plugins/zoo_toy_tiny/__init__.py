"""A family from another package, as small as one can be: it comes in through the entry-point group `zoo.families`."""

from zoo import registry

registry.table("reader").setdefault("toy-squares", "toy_squares:Squares")
