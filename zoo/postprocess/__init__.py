"""From maps to objects: pure functions on arrays."""
