"""Files: images, label images, GeoJSON, tables."""
