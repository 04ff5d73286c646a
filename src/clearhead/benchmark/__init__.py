"""Measure how fast the compiled engine is on this machine, and how near to what the machine can do.

`run.py` is the whole measurement. Each dtype runs in processes of its own (`process.py`), so that memory and start-up
can be told apart; `speed.py` times the work inside, and `bandwidth.py` measures the limit that memory sets.
"""
