"""The words of the architecture diagram, in English and in Chinese."""

from __future__ import annotations

from clearhead.anatomy.labels import COMMON

LANGUAGES: dict[str, dict[str, str]] = {
    "en": {
        **COMMON["en"],
        "book": "{name}, as in the book",
        "token": "Token embedding",
        "position": "Position embedding",
        "dropout": "Dropout",
        "rate": "rate {rate}, in training only",
        "rate 0": "rate 0: no effect",
        "norm_1": "Layer norm 1",
        "attention": "Masked multi-head attention",
        "norm_2": "Layer norm 2",
        "final_norm": "Final layer norm",
        "attention note": "{heads}, each {width} wide",
        "one head": "1 head",
        "heads": "{n} heads",
        "from norm_1": "from layer norm 1",
        "W_query": "W_query",
        "W_key": "W_key",
        "W_value": "W_value",
        "out": "Output projection",
        "to shortcut": "to dropout and shortcut",
        "from norm_2": "from layer norm 2",
        "gelu": "GELU",
        "gelu_tanh": "tanh approximation",
        "gelu_erf": "exact, with erf",
        "relu": "max(0, x)",
        "shape": "{blocks}, {heads} of width {width}, {emb} numbers per token, {context} positions, {vocab} token ids",
        "one block": "1 block",
        "blocks": "{n} blocks",
        "letter T": "T: tokens in a sequence, at most {context}",
        "about": (
            "The architecture of {name}, from the bottom up. The token embedding turns token ids into vectors, and "
            "position vectors are added. They pass through {blocks}, each with a norm, masked multi-head attention "
            "with {heads}, a norm and a feed-forward layer, and a shortcut around each half; then through a final "
            "norm and the output head, which computes the logits. {total} parameters in total."
        ),
    },
    "zh": {
        **COMMON["zh"],
        "book": "{name}（书中的版本）",
        "token": "词元嵌入",
        "position": "位置嵌入",
        "dropout": "Dropout",
        "rate": "丢弃率 {rate}，仅训练时生效",
        "rate 0": "丢弃率 0：不起作用",
        "norm_1": "层归一化 1",
        "attention": "掩码多头注意力",
        "norm_2": "层归一化 2",
        "final_norm": "最终层归一化",
        "attention note": "{heads}，每个头 {width} 维",
        "one head": "1 个头",
        "heads": "{n} 个头",
        "from norm_1": "来自层归一化 1",
        "W_query": "查询 W_query",
        "W_key": "键 W_key",
        "W_value": "值 W_value",
        "out": "输出投影",
        "to shortcut": "送往 dropout 和快捷连接",
        "from norm_2": "来自层归一化 2",
        "gelu": "GELU",
        "gelu_tanh": "tanh 近似",
        "gelu_erf": "精确公式（erf）",
        "relu": "max(0, x)",
        "shape": "{blocks}，{heads}（每个头 {width} 维），嵌入 {emb} 维，{context} 个位置，词表 {vocab} 个词元",
        "one block": "1 个块",
        "blocks": "{n} 个块",
        "letter T": "T：序列的词元数，最多 {context}",
        "about": (
            "{name} 的结构图，自下而上阅读。词元编号经词元嵌入变成向量，再加上位置向量；然后依次通过 {blocks}，"
            "每个块包含归一化、掩码多头注意力（{heads}）、归一化和前馈层，注意力和前馈层各有一条快捷连接；"
            "最后经过最终层归一化和输出头，得到 logits。共 {total} 个参数。"
        ),
    },
}
