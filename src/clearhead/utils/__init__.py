"""Ground that every other package may stand on: no torch, no model."""
