"""Watch and edit what happens inside a model: every activation on the way from ids to logits has a name.

    trace = gpt.watch("Every effort moves you", "blocks.*.attention.pattern")
    with gpt.edit("blocks.3.attention.mixed", 0, heads=2):
        print(gpt.generate("Every effort moves you"))

`names(config)` lists the activations. `GPT.watch` and `GPT.edit` apply these functions to a text.
"""

from clearhead.lens.activations import Activation, Activations, names
from clearhead.lens.editing import edit
from clearhead.lens.reading import logit_lens, pieces
from clearhead.lens.watching import Trace, watch

__all__ = ["Activation", "Activations", "Trace", "edit", "logit_lens", "names", "pieces", "watch"]
