"""Watch and edit what happens inside a model: every activation on the way from ids to logits has a name.

    trace = gpt.watch("Every effort moves you", "blocks.*.attention.pattern")
    with gpt.edit("blocks.3.attention.mixed", 0, heads=2):
        print(gpt.generate("Every effort moves you"))

`names(config)` lists the activations. `GPT.watch` and `GPT.edit` apply these functions to a text.
"""

from clearhead.lens.ablation import ablate, steer, steering_vector
from clearhead.lens.activations import Activation, Activations, names
from clearhead.lens.attribution import direct_logit_attribution, gradient_times_input, integrated_gradients
from clearhead.lens.cache import run_with_cache
from clearhead.lens.editing import Edit, edit
from clearhead.lens.head_scores import head_scores
from clearhead.lens.head_weights import HeadWeights, head_weights
from clearhead.lens.labelled import LabelledArray
from clearhead.lens.patching import Patching, attribution_patch, logit_difference, patch, path_patch
from clearhead.lens.predictions import LayerPredictions, layer_predictions
from clearhead.lens.probing import Probe, train_probe
from clearhead.lens.reading import logit_lens, pieces
from clearhead.lens.results import ActivationCache, Trace, numpy_cache
from clearhead.lens.splicing import Spliced, splice
from clearhead.lens.storage import read_activations, stream_activations
from clearhead.lens.tuned import TunedLens, train_tuned_lens
from clearhead.lens.watching import watch, watch_tensors

__all__ = [
    "Activation",
    "ActivationCache",
    "Activations",
    "Edit",
    "HeadWeights",
    "LabelledArray",
    "LayerPredictions",
    "Patching",
    "Probe",
    "Spliced",
    "Trace",
    "TunedLens",
    "ablate",
    "attribution_patch",
    "direct_logit_attribution",
    "edit",
    "gradient_times_input",
    "head_scores",
    "head_weights",
    "integrated_gradients",
    "layer_predictions",
    "logit_difference",
    "logit_lens",
    "names",
    "numpy_cache",
    "patch",
    "path_patch",
    "pieces",
    "read_activations",
    "run_with_cache",
    "splice",
    "steer",
    "steering_vector",
    "stream_activations",
    "train_probe",
    "train_tuned_lens",
    "watch",
    "watch_tensors",
]
