"""Documents, sources, corpora, shards, batches and examples: everything from text to a training step.

Training batches are drawn in `batches.py` (windows of a corpus) and `examples.py` (prompts, labelled texts).
"""
