"""Watching and changing what happens inside a model: every value on the way from ids to logits has a name.

    trace = gpt.watch("Every effort moves you", "blocks.*.attention.pattern")
    with gpt.edit("blocks.3.attention.mixed", 0, heads=2):
        print(gpt.generate("Every effort moves you"))

`names(config)` lists the values. `GPT.watch` and `GPT.edit` are these functions on a text.
"""

from clearhead.lens.catalogue import Catalogue, Value, names
from clearhead.lens.editing import edit
from clearhead.lens.reading import logit_lens, pieces
from clearhead.lens.watching import Trace, watch

__all__ = ["Catalogue", "Trace", "Value", "edit", "logit_lens", "names", "pieces", "watch"]
