"""Published cases against this build: reading, answering, comparing."""
