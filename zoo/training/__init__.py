"""The only room that knows Lightning: run folders, checkpoints, resume, logging."""
