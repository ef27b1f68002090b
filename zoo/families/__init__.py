"""One folder a system: everything that is peculiar to it and nothing that is not."""
