"""The framework diagram of a GPT-2."""
