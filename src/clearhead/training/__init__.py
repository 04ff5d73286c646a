"""From raw text to a trained GPT-2: a recipe, a corpus, batches, an optimizer, the loop, checkpoints."""
