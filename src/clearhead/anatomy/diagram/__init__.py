"""The architecture diagram of a GPT-2."""
