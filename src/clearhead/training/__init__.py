"""Train a model from a recipe: the loop, the step, the optimizer, checkpoints, several processes, fine-tuning."""
