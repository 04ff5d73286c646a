"""Tests of weights under the names of every layout."""
