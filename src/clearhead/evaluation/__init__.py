"""Measure models: perplexity, surprisal tables and benchmarks."""
