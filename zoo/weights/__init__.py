"""Names -> verified files -> state dicts. This room knows no model."""
