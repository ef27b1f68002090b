"""An image or volume -> a feature pyramid, under one contract."""
