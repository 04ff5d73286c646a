"""The words of the walk, in English and Chinese, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = ("en", "zh")

# Names in braces are filled in from the walk. Keys that begin with "ui." are for the page only.
_WORDS: dict[str, tuple[str, str]] = {
    "title": ("One prompt on its way through a GPT-2", "一段提示词经过 GPT-2 的全过程"),
    "model": (
        "{name}: {n_layers} blocks, {n_heads} heads, {emb_dim} numbers per token",
        "{name}：{n_layers} 个块，每块 {n_heads} 个头，嵌入 {emb_dim} 维",
    ),
    "bundled": ("the bundled model", "自带的模型"),
    "cut": (
        "The prompt has {prompt_tokens} tokens. The model read all of them; the last {shown} are shown, from position "
        "{first} on.",
        "提示词共 {prompt_tokens} 个词元，全部参与计算；这里只显示最后 {shown} 个（从位置 {first} 开始）。",
    ),
    "tokens": ("Text becomes tokens", "文字变成词元"),
    "tokens.text": (
        "The tokenizer splits the text into tokens from a fixed vocabulary of {vocab_size}. The model sees only their "
        "ids. A space belongs to the token after it.",
        "分词器按固定的词表（{vocab_size} 项）把文字切成词元。模型看到的只是词元的编号（id）。空格归属于后面的词元。",
    ),
    "position": ("position", "位置"),
    "id": ("id", "编号"),
    "piece": ("token", "词元"),
    "embedding": ("Each token becomes a vector", "每个词元变成一个向量"),
    "embedding.text": (
        "Each id selects a row of {emb_dim} numbers from one table, and each position a row from another. Their sum "
        "enters the first block. These are the first few numbers.",
        "每个编号从一张表中取出一行（{emb_dim} 个数），每个位置从另一张表中取出一行；"
        "两者之和进入第一个块。这里显示最前面的几个数。",
    ),
    "embedding.token": ("token", "词元"),
    "embedding.position": ("position", "位置"),
    "embedding.sum": ("sum", "和"),
    "norm": ("Norms bring vectors to the same scale", "归一化让向量的尺度一致"),
    "norm.text": (
        "Before attention (norm_1) and before the feed-forward layer (norm_2), each vector is shifted to mean 0 and "
        "scaled to variance 1. Then learned parameters scale and shift each of its numbers.",
        "在注意力之前（norm_1）和前馈层之前（norm_2），每个向量先调整到均值 0、方差 1，再由学到的参数逐维缩放和平移。",
    ),
    "norm.before": ("before", "之前"),
    "norm.normed": ("normalized", "归一化后"),
    "norm.after": ("scaled and shifted", "缩放、平移后"),
    "mean": ("mean", "均值"),
    "variance": ("variance", "方差"),
    "attention": ("Attention: tokens look at each other", "注意力：词元之间交换信息"),
    "attention.text": (
        "In each of {n_heads} heads, every token has a query, a key and a value. The query of one token times the key "
        "of another is a score. Later tokens are masked; the softmax turns each row into weights that sum to 1.",
        "在 {n_heads} 个头中，每个词元都有查询、键和值。一个词元的查询与另一个词元的键的点积就是注意力分数。"
        "后面的词元被掩码遮住；softmax 把每一行变成和为 1 的权重。",
    ),
    "attention.scores": ("Scores: query × key / √{head_dim}", "分数：查询 × 键 / √{head_dim}"),
    "attention.weights": ("Mask, then softmax: the weights", "加掩码，再做 softmax：权重"),
    "attention.mixed": (
        "The result for {token}: each value times its weight, summed (first numbers)",
        "{token} 的结果：各个值按权重加权求和（最前面的几个数）",
    ),
    "earlier": ("{share} of the weight is on tokens before those shown", "另有 {share} 的权重在未显示的更早词元上"),
    "sum": ("sum", "和"),
    "at": ("Block {block}, head {head}", "{block} 号块，{head} 号头"),
    "at.block": ("Block {block}", "{block} 号块"),
    "gelu": ("Feed-forward and GELU", "前馈层与 GELU"),
    "gelu.text": (
        "The feed-forward layer widens each vector to {ff_dim} numbers. GELU passes large numbers and pushes negative "
        "ones towards 0; then the vector is narrowed to {emb_dim} numbers again.",
        "前馈层先把每个向量升到 {ff_dim} 维。GELU 让大的数通过，把负数压向 0，然后再降回 {emb_dim} 维。",
    ),
    "gelu.share": (
        "{below_zero} of the numbers are below 0; after GELU, {nearly_zero} are within 0.1 of 0.",
        "{below_zero} 的数小于 0；经过 GELU 之后，{nearly_zero} 的数与 0 相差不到 0.1。",
    ),
    "before": ("before", "之前"),
    "after": ("after", "之后"),
    "residual": ("The residual stream, block by block", "残差流逐块的变化"),
    "residual.text": (
        "A block does not replace a token's vector: attention and the feed-forward layer each add to it. Size means "
        "the root mean square of a vector's numbers.",
        "残差流只往里加，从不改写：注意力和前馈层都把输出加到词元的向量上。大小指各数的均方根。",
    ),
    "size": ("size", "大小"),
    "depth.embedding": ("embedding", "嵌入"),
    "depth.block": ("block {block}", "{block} 号块"),
    "attention_adds": ("attention adds", "注意力的增量"),
    "feed_forward_adds": ("feed-forward adds", "前馈层的增量"),
    "lens": ("Logit lens: what each block would predict", "logit 透镜：各块之后会预测什么"),
    "lens.text": (
        "The final norm and the head follow the last block. Applied after an earlier block, they show what the model "
        "would predict if it ended there.",
        "最终归一化和输出头接在最后一个块之后。把它们接到更早的块之后，就能看到模型若在那里结束会预测什么。",
    ),
    "next": ("From logits to the next token", "从 logits 到下一个词元"),
    "next.text": (
        "After the last token, the head gives every token of the vocabulary a logit. The logits are divided by the "
        "temperature and cut to the k largest; the softmax turns them into probabilities, and one token is sampled.",
        "在最后一个词元之后，输出头给词表中每个词元一个 logit。logit 除以温度，只保留最大的 k 个，"
        "由 softmax 变成概率，再按概率采样一个词元。",
    ),
    "logit": ("logit", "logit"),
    "softmax": ("softmax", "softmax"),
    "temperature": ("temperature {temperature}", "温度 {temperature}"),
    "top_k": ("top {top_k}", "前 {top_k} 个"),
    "drawn": ("<- sampled", "<- 采样结果"),
    "next.seed": (
        "Sampled with seed {seed}: {token}",
        "用种子 {seed} 采样：{token}",
    ),
    "ui.language": ("中文", "English"),
    "ui.choose_token": (
        "Point at a token or tap it to select it. The colour shows its attention to each token, in the block and head "
        "chosen above.",
        "指向或点按一个词元即可选中它。颜色表示在上方所选的块和头中，它对各个词元的注意力权重。",
    ),
    "ui.asking": ("{token} at position {position}", "位置 {position} 的 {token}"),
    "ui.block": ("Block", "块"),
    "ui.head": ("Head", "头"),
    "ui.all_heads": (
        "All heads, one row per block. Choose one; the arrow keys move.",
        "所有的头，每行一个块。选择一个查看；可用方向键移动。",
    ),
    "ui.scores": ("Scores", "分数"),
    "ui.masked": ("Masked", "加掩码"),
    "ui.weights": ("Weights", "权重"),
    "ui.rows": ("Row: the query's token. Column: the key's token.", "行：查询的词元。列：键的词元。"),
    "ui.looks_at": ("{token} looks at", "{token} 关注"),
    "ui.value": ("first numbers of its value", "其值的前几个数"),
    "ui.weighted": ("weighted sum", "加权和"),
    "ui.histogram": (
        "The distribution of this block's numbers before GELU; the outermost bars include everything beyond. The line "
        "is GELU itself; the dots are the first numbers of the selected token.",
        "本块的数在 GELU 之前的分布，最外侧的柱包含更远的数。曲线是 GELU 本身，圆点是所选词元最前面的几个数。",
    ),
    "ui.log": (
        "Logarithmic scale. The bold line is the selected token; the thin ones are the other tokens.",
        "对数刻度。粗线是所选词元，细线是其他词元。",
    ),
    "ui.adds": ("What the blocks add to {token}", "各块给 {token} 加上的增量"),
    "ui.lens_grid": (
        "The likeliest next token after each block (row) and each token (column); the stronger the colour, the more "
        "probable.",
        "在每个块（行）、每个词元（列）之后最可能的下一个词元；颜色越深，概率越高。",
    ),
    "ui.lens_of": ("After {token}, block by block", "在 {token} 之后，逐块来看"),
    "ui.temperature": ("Temperature", "温度"),
    "ui.top_k": ("Top-k", "Top-k"),
    "ui.all": ("all", "全部"),
    "ui.draw": ("Sample a token", "采样一个词元"),
    "ui.drew": ("Sampled: {token} ({share})", "采样结果：{token}（{share}）"),
    "ui.others": ("{count} other tokens", "其余 {count} 个词元"),
    "ui.chosen": (
        "sampled by clearhead: seed {seed}, temperature {temperature}, top-k {top_k}",
        "clearhead 的采样结果：种子 {seed}，温度 {temperature}，top-k {top_k}",
    ),
    "ui.made": (
        "Made by clearhead walk. The numbers come from one forward pass of the model; the page needs no network.",
        "由 clearhead walk 生成。数字来自模型的一次前向计算；本页无需网络。",
    ),
}


def words(language: str) -> Mapping[str, str]:
    """Return all words of one of `LANGUAGES`, by key."""
    column = LANGUAGES.index(language)
    return {key: both[column] for key, both in _WORDS.items()}
