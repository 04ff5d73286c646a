"""The compiled CPU Runner: GPT-2 in Numba, in four weight formats.

`runner.py` is the way in. Read in this order: `formats.py` (how weights are stored), `tiles.py` (the products),
`attention.py`, `elementwise.py`, `forward.py` (the pass that uses them all), `threads.py`, `runner.py`.
"""
