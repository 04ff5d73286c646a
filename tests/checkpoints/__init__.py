"""Tests of TensorFlow checkpoints."""
