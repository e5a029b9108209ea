"""The families of the embedded world, one small module per theme (X1)."""
