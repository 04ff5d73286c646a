"""Hide one word from the attention of every block, and compare what the model writes. Needs clearhead[torch]."""

from typing import Any

import clearhead

gpt = clearhead.load()
prompt = "One day, Lily was very happy because"


def without_the_name(pattern: Any) -> Any:  # [H, T, T]
    pattern[..., 3] = 0  # no token attends to position 3, the name
    return pattern


print(gpt.generate(prompt, temperature=0, max_new_tokens=12))
with gpt.edit("blocks.*.attention.pattern", without_the_name):
    print(gpt.generate(prompt, temperature=0, max_new_tokens=12))
