"""Tests of corpora: reading documents, building, resuming, refusing."""
