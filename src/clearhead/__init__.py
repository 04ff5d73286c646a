"""Clearhead: a GPT-2 that you can read, trust and run fast."""

__version__ = "0.1.0"
