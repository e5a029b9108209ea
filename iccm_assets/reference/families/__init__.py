"""The families of the simulation, one small module per theme (X1)."""
