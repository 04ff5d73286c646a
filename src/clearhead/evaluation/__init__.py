"""How good a model is, as numbers that can be compared."""
