"""Watch and edit what happens inside a model: every activation on the way from ids to logits has a name.

    trace = gpt.watch("Every effort moves you", "blocks.*.attention.pattern")
    with gpt.edit("blocks.3.attention.mixed", 0, heads=2):
        print(gpt.generate("Every effort moves you"))

`names(config)` lists the activations. `GPT.watch` and `GPT.edit` apply these functions to a text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clearhead.utils.lazy import lazy_names

if TYPE_CHECKING:
    from clearhead.lens.ablation import ablate, steer, steering_vector
    from clearhead.lens.activations import Activation, Activations, names
    from clearhead.lens.attribution import direct_logit_attribution, gradient_times_input, integrated_gradients
    from clearhead.lens.cache import run_with_cache
    from clearhead.lens.editing import Edit, edit
    from clearhead.lens.head_matrices import HeadWeights, head_weights
    from clearhead.lens.labelled import LabelledArray
    from clearhead.lens.patching import Patching, attribution_patch, logit_difference, patch, path_patch
    from clearhead.lens.predictions import LayerPredictions, layer_predictions
    from clearhead.lens.probing import Probe, train_probe
    from clearhead.lens.reading import logit_lens, pieces
    from clearhead.lens.results import ActivationCache, Trace, numpy_cache
    from clearhead.lens.scored_heads import head_scores
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

# The module that defines each name. They are imported when they are first used, since most of them need PyTorch.
_HOME = {
    "ablate": "clearhead.lens.ablation",
    "steer": "clearhead.lens.ablation",
    "steering_vector": "clearhead.lens.ablation",
    "Activation": "clearhead.lens.activations",
    "Activations": "clearhead.lens.activations",
    "names": "clearhead.lens.activations",
    "direct_logit_attribution": "clearhead.lens.attribution",
    "gradient_times_input": "clearhead.lens.attribution",
    "integrated_gradients": "clearhead.lens.attribution",
    "run_with_cache": "clearhead.lens.cache",
    "Edit": "clearhead.lens.editing",
    "edit": "clearhead.lens.editing",
    "head_scores": "clearhead.lens.scored_heads",
    "HeadWeights": "clearhead.lens.head_matrices",
    "head_weights": "clearhead.lens.head_matrices",
    "LabelledArray": "clearhead.lens.labelled",
    "Patching": "clearhead.lens.patching",
    "attribution_patch": "clearhead.lens.patching",
    "logit_difference": "clearhead.lens.patching",
    "patch": "clearhead.lens.patching",
    "path_patch": "clearhead.lens.patching",
    "LayerPredictions": "clearhead.lens.predictions",
    "layer_predictions": "clearhead.lens.predictions",
    "Probe": "clearhead.lens.probing",
    "train_probe": "clearhead.lens.probing",
    "logit_lens": "clearhead.lens.reading",
    "pieces": "clearhead.lens.reading",
    "ActivationCache": "clearhead.lens.results",
    "Trace": "clearhead.lens.results",
    "numpy_cache": "clearhead.lens.results",
    "Spliced": "clearhead.lens.splicing",
    "splice": "clearhead.lens.splicing",
    "read_activations": "clearhead.lens.storage",
    "stream_activations": "clearhead.lens.storage",
    "TunedLens": "clearhead.lens.tuned",
    "train_tuned_lens": "clearhead.lens.tuned",
    "watch": "clearhead.lens.watching",
    "watch_tensors": "clearhead.lens.watching",
}

if not TYPE_CHECKING:  # a type checker would take every unknown name for `Any`
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
