"""The card of a trained model: what it is, what it learned from, what it reached; a README beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clearhead.training.recipe import Recipe


def model_card(
    name: str, recipe: Recipe, learned_from: str, scores: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]
) -> str:
    """The card in Markdown, with the front matter that the hub reads.

    Args:
        name: of the run.
        recipe: that it was made by; its text stands at the end of the card.
        learned_from: the data in words.
        scores: by held-out text.
        facts: `environment.environment`'s, with what the run adds: parameters, steps, tokens, seconds.
    """
    m, t = recipe.model, recipe.training
    classes = recipe.finetune is not None and recipe.finetune.kind == "classes"
    header = sorted({score for values in scores.values() for score in values})
    results = [
        "| held-out text | " + " | ".join(words(score) for score in header) + " |",
        "|---" * (len(header) + 1) + "|",
    ]
    for text, values in scores.items():
        results.append(f"| {text} | " + " | ".join(f"{values[s]:.4f}" if s in values else "" for s in header) + " |")
    return f"""---
library_name: clearhead
pipeline_tag: {"text-classification" if classes else "text-generation"}
tags:
- gpt2
- clearhead
---

# {name}

A GPT-2 with {facts["parameters"]:,} parameters: {m.n_layers} blocks, {m.n_heads} heads, {m.emb_dim} numbers a token,
{m.context_length:,} tokens of context, {m.vocab_size:,} tokens in the vocabulary.

## Learned from

{learned_from}

## Results

{chr(10).join(results) if scores else "Nothing was held out."}

## Training

{facts["steps"]:,} steps of {t.batch_size} windows, {facts["tokens"]:,} tokens. {facts["products"]} products on
{facts["device"]} ({facts["processes"]} {"process" if facts["processes"] == 1 else "processes"}); Clearhead
{facts["clearhead"]}, torch {facts["torch"]}.

## Use

```
clearhead {"classify" if classes else "generate"} "..." --model FOLDER
```

The folder is one of Hugging Face's: `transformers` opens it with
`AutoModelFor{"SequenceClassification" if classes else "CausalLM"}.from_pretrained(FOLDER)`.

## Recipe

```toml
{recipe.text.strip()}
```
"""


def words(score: str) -> str:
    """A score's name in words."""
    return {"bits_per_byte": "bits per byte"}.get(score, score)
