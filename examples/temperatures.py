"""Continue one prompt at several temperatures, with one seed."""

import clearhead

gpt = clearhead.load(dtype="int8")
for temperature in (0, 0.5, 1.0, 1.5):
    text = gpt.generate("The old man had a", temperature=temperature, max_new_tokens=20, seed=1).text
    print(f"{temperature}: {text!r}")
