"""Documents, corpora, shards and batches: from text to a training step."""
