"""The compiled CPU Runner: GPT-2 in Numba, with weights in four dtypes.

`runner.py` is the entry. Read in this order: `variants.py` (what suits the CPU), `products.py` (matrix products),
`attention.py`, `elementwise.py`, `forward.py` (the pass that uses them all), `threads.py`, `runner.py`.
"""
