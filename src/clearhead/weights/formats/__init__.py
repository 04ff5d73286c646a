"""One file per file format: each lists names, shapes and number formats without reading the data."""
