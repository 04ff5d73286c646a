"""How fast the compiled engine is on this machine, and how near to what the machine can do.

`run.py` is the whole measurement. Each weight format runs in processes of its own (`process.py`), so that its memory
and its start are its alone; `speed.py` is what is timed inside, `bandwidth.py` the limit that memory sets.
"""
