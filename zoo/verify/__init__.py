"""Published cases against this build."""
