"""Tests of Hugging Face folders."""
