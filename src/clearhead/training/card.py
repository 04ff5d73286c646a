"""Write the card of a trained model: its shape, data and scores, as a README next to the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clearhead.training.recipe import Recipe


def model_card(
    name: str, recipe: Recipe, learned_from: str, scores: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]
) -> str:
    """Return the card in Markdown, with the front matter that the hub reads.

    Args:
        name: the run's name.
        recipe: the run's recipe; its text is the end of the card.
        learned_from: a description of the data.
        scores: by held-out text.
        facts: those of `environment.environment`, and the run's: parameters, steps, tokens.
    """
    m, t = recipe.model, recipe.training
    classes = recipe.finetune is not None and recipe.finetune.kind == "classes"
    return f"""---
library_name: clearhead
pipeline_tag: {"text-classification" if classes else "text-generation"}
tags:
- gpt2
- clearhead
---

# {name}

A GPT-2 with {facts["parameters"]:,} parameters: {m.n_layers} blocks, {m.n_heads} heads, an embedding dimension of
{m.emb_dim}, a context of {m.context_length:,} tokens, a vocabulary of {m.vocab_size:,} tokens.

## Training data

{learned_from}

## Results

{_score_table(scores) if scores else "Nothing was held out."}

## Training

{facts["steps"]:,} steps of {t.batch_size} windows, {facts["tokens"]:,} tokens.
Matrix products in {facts["products"]} on {facts["device"]}
({facts["processes"]} {"process" if facts["processes"] == 1 else "processes"}).
Clearhead {facts["clearhead"]}, torch {facts["torch"]}.

## Use

```
clearhead {"classify" if classes else "generate"} "..." --model FOLDER
```

The folder is a Hugging Face model: `transformers` opens it with
`AutoModelFor{"SequenceClassification" if classes else "CausalLM"}.from_pretrained(FOLDER)`.

## Recipe

```toml
{recipe.text.strip()}
```
"""


def _score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table of scores, with a row for each held-out text."""
    header = sorted({score for values in scores.values() for score in values})
    results = [
        "| held-out text | " + " | ".join(score_label(score) for score in header) + " |",
        "|---" * (len(header) + 1) + "|",
    ]
    for text, values in scores.items():
        results.append(f"| {text} | " + " | ".join(f"{values[s]:.4f}" if s in values else "" for s in header) + " |")
    return "\n".join(results)


def score_label(score: str) -> str:
    """Return a score's name in words."""
    return {"bits_per_byte": "bits per byte"}.get(score, score)
