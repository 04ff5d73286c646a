"""Write the card of a trained model: its shape, data and scores, as a README next to the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clearhead.training.recipe import Recipe
from clearhead.utils.arguments import Language
from clearhead.utils.localization import localized, users_language

_CARD: dict[Language, str] = {
    "en": """# {name}

A GPT-2 with {facts[parameters]:,} parameters: {m.n_layers} blocks, {m.n_heads} heads, an embedding dimension of
{m.emb_dim}, a context of {m.context_length:,} tokens, a vocabulary of {m.vocab_size:,} tokens.

## Training data

{learned_from}

## Results

{results}

## Training

{facts[steps]:,} steps of {batch}, {facts[tokens]:,} tokens.
Matrix products in {facts[products]} on {facts[device]}
({processes}).
Clearhead {facts[clearhead]}, torch {facts[torch]}.

## Use

```
clearhead {command} --model FOLDER
```

The folder is a Hugging Face model: `transformers` opens it with
`{transformers_class}.from_pretrained(FOLDER)`.

## Recipe

```toml
{recipe}
```
""",
    "zh": """# {name}

一个有 {facts[parameters]:,} 个参数的 GPT-2：{m.n_layers} 个块，{m.n_heads} 个注意力头，嵌入维度 {m.emb_dim}，
上下文 {m.context_length:,} 个词元，词表 {m.vocab_size:,} 个词元。

## 训练数据

{learned_from}

## 评测结果

{results}

## 训练

共 {facts[steps]:,} 步，每步 {batch}，总计 {facts[tokens]:,} 个词元。
矩阵乘法用 {facts[products]} 计算，设备为 {facts[device]}（{processes}）。
Clearhead {facts[clearhead]}，torch {facts[torch]}。

## 使用

```
clearhead {command} --model FOLDER
```

这个文件夹是 Hugging Face 格式的模型，`transformers` 用
`{transformers_class}.from_pretrained(FOLDER)` 打开。

## 配方

```toml
{recipe}
```
""",
}
_NOTHING_HELD_OUT: dict[Language, str] = {"en": "Nothing was held out.", "zh": "没有留出文本。"}
_PROCESSES: dict[Language, Callable[[int], str]] = {
    "en": lambda count: f"{count} {'process' if count == 1 else 'processes'}",
    "zh": lambda count: f"{count} 个进程",
}


def model_card(
    name: str, recipe: Recipe, learned_from: str, scores: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]
) -> str:
    """Return the card in Markdown and in the user's language, with the front matter that the hub reads.

    Args:
        name: the run's name.
        recipe: the run's recipe; its text is the end of the card.
        learned_from: a description of the data.
        scores: by held-out text.
        facts: those of `environment.environment`, and the run's: parameters, steps, tokens, what a step reads.
    """
    m, lang = recipe.model, users_language()
    classes = recipe.finetune is not None and recipe.finetune.kind == "classes"
    words = _CARD[lang].format(
        name=name,
        learned_from=localized(learned_from),
        results=_score_table(scores) if scores else _NOTHING_HELD_OUT[lang],
        m=m,
        batch=localized(str(facts["batch"])),
        processes=_PROCESSES[lang](facts["processes"]),
        command=recipe.verb if recipe.verb == "chat" else f'{recipe.verb} "..."',
        transformers_class=f"AutoModelFor{'SequenceClassification' if classes else 'CausalLM'}",
        facts={**facts, "device": localized(str(facts["device"]))},
        recipe=recipe.text.strip(),
    )
    return f"""---
library_name: clearhead
pipeline_tag: {"text-classification" if classes else "text-generation"}
tags:
- gpt2
- clearhead
---

{words}"""


def _score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table of scores, with a row for each held-out text."""
    header = sorted({score for values in scores.values() for score in values})
    results = [
        f"| {localized('held-out text')} | " + " | ".join(score_label(score) for score in header) + " |",
        "|---" * (len(header) + 1) + "|",
    ]
    for text, values in scores.items():
        results.append(f"| {text} | " + " | ".join(f"{values[s]:.4f}" if s in values else "" for s in header) + " |")
    return "\n".join(results)


def score_label(score: str) -> str:
    """Return a score's name in words, in the user's language."""
    return localized({"bits_per_byte": "bits per byte"}.get(score, score))
