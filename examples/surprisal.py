"""Print the surprisal of every token of a sentence, in bits."""

import math

import clearhead

gpt = clearhead.load()
score = gpt.score("The little girl opened the window and saw a spoon.")
for token in score.tokens:
    if token.surprisal is not None:
        bits = token.surprisal / math.log(2)
        print(f"{token.text!r:12} {bits:6.2f}  {'█' * round(2 * bits)}")
