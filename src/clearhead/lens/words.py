"""What the walk says beside its numbers, in English and Chinese: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = ("en", "zh")

# Names in braces are filled from the walk. Keys that begin with "ui." are for the page alone.
_WORDS: dict[str, tuple[str, str]] = {
    "title": ("One prompt on its way through a GPT-2", "一段文字穿过 GPT-2 的全过程"),
    "model": (
        "{name}: {n_layers} blocks, {n_heads} heads, {emb_dim} numbers a token",
        "{name}：{n_layers} 层，{n_heads} 个注意力头，每个词元 {emb_dim} 个数",
    ),
    "bundled": ("the bundled model", "自带的模型"),
    "cut": (
        "The prompt has {prompt_tokens} tokens. All of them ran; shown are the last {shown}, from place {first} on.",
        "提示共 {prompt_tokens} 个词元，全部参与了计算；这里只显示最后 {shown} 个（从位置 {first} 开始）。",
    ),
    "tokens": ("Text becomes tokens", "文字变成词元"),
    "tokens.text": (
        "The tokenizer cuts the text into pieces from a fixed list of {vocab_size}. The model sees only their "
        "numbers, the ids. A space belongs to the piece after it.",
        "分词器按一张固定的词表（{vocab_size} 项）把文字切成片段。模型看到的只是片段的编号（id）。"
        "空格属于它后面的片段。",
    ),
    "place": ("place", "位置"),
    "id": ("id", "编号"),
    "piece": ("piece", "片段"),
    "embedding": ("Each token becomes a vector", "每个词元变成一个向量"),
    "embedding.text": (
        "Each id picks a row of {emb_dim} numbers from one table, each place in the text a row from another. Their sum "
        "enters the first block. These are the first numbers.",
        "每个编号从一张表中取出一行（{emb_dim} 个数），每个位置从另一张表中取出一行；"
        "两者之和进入第一层。这里是最前面的几个数。",
    ),
    "embedding.token": ("token", "词元"),
    "embedding.position": ("place", "位置"),
    "embedding.sum": ("sum", "和"),
    "norm": ("A norm brings each vector to one size", "归一化让每个向量大小一致"),
    "norm.text": (
        "Before attention (norm_1) and before the feed-forward layer (norm_2), each vector is shifted to mean 0 and "
        "scaled to variance 1. Then learned weights scale and shift each of its numbers.",
        "在注意力之前（norm_1）和前馈层之前（norm_2），每个向量先平移到均值 0、缩放到方差 1，"
        "再由学到的权重逐个缩放和平移。",
    ),
    "norm.before": ("before", "之前"),
    "norm.normed": ("normalised", "归一化"),
    "norm.after": ("scaled, shifted", "缩放平移后"),
    "mean": ("mean", "均值"),
    "variance": ("variance", "方差"),
    "attention": ("Tokens look at each other", "词元之间的注意力"),
    "attention.text": (
        "In each of {n_heads} heads, every token has a query, a key and a value. The query of one times the key of "
        "another is a score. Scores of later tokens are masked; the softmax turns each row into weights that sum to 1.",
        "在 {n_heads} 个头中，每个词元都有查询、键和值。一个词元的查询乘以另一个词元的键就是得分。"
        "后面的词元被遮住；softmax 把每一行变成和为 1 的权重。",
    ),
    "attention.scores": ("Scores: query × key / √{head_dim}", "得分：查询 × 键 / √{head_dim}"),
    "attention.weights": ("Later tokens masked, then softmax: the weights", "遮住后面的词元，再做 softmax：权重"),
    "attention.mixed": (
        "What {token} takes in: the values, each times its weight (first numbers)",
        "{token} 得到的内容：各个值乘以权重（最前面的几个数）",
    ),
    "earlier": ("{share} of the weight is on tokens before those shown", "{share} 的权重在未显示的更早词元上"),
    "sum": ("sum", "和"),
    "at": ("Block {block}, head {head}", "第 {block} 层，第 {head} 头"),
    "at.block": ("Block {block}", "第 {block} 层"),
    "gelu": ("GELU bends", "GELU 的弯曲"),
    "gelu.text": (
        "The feed-forward layer widens each vector to {ff_dim} numbers. GELU keeps the large ones and presses the "
        "negative ones towards 0; the result is narrowed to {emb_dim} numbers again.",
        "前馈层先把每个向量加宽到 {ff_dim} 个数。GELU 保留大的数，把负数压向 0，然后再变回 {emb_dim} 个数。",
    ),
    "gelu.share": (
        "{below_zero} of the numbers are below 0; after GELU {nearly_zero} are within 0.1 of 0.",
        "{below_zero} 的数小于 0；经过 GELU 之后，{nearly_zero} 的数与 0 相差不到 0.1。",
    ),
    "before": ("before", "之前"),
    "after": ("after", "之后"),
    "residual": ("The residual stream through the depth", "残差流随深度的变化"),
    "residual.text": (
        "A block does not replace a token's vector: attention and the feed-forward layer each add to it. Its size is "
        "the root mean square of its numbers.",
        "每一层并不替换词元的向量，注意力和前馈层都只是往上加。大小指各数的均方根。",
    ),
    "size": ("size", "大小"),
    "depth.embedding": ("embedding", "嵌入"),
    "depth.block": ("block {block}", "第 {block} 层"),
    "attention_adds": ("attention adds", "注意力加上"),
    "feed_forward_adds": ("feed-forward adds", "前馈层加上"),
    "lens": ("What each depth would say", "每一层会说什么"),
    "lens.text": (
        "The final norm and the head stand behind the last block. Applied after any other, they show what the model "
        "would write if it ended there: the logit lens.",
        "最终归一化和输出层本来在最后一层之后。把它们用在其他层之后，就能看到模型若在那里结束会写什么：logit lens。",
    ),
    "next": ("From logits to the next token", "从 logits 到下一个词元"),
    "next.text": (
        "After the last token, the head gives every token of the vocabulary a logit. Divided by the temperature and "
        "cut to the k largest, the softmax makes them probabilities, by which one token is drawn.",
        "在最后一个词元之后，输出层给词表中每个词元一个 logit。除以温度、只留最大的 k 个，"
        "softmax 把它们变成概率，再按概率抽取一个词元。",
    ),
    "logit": ("logit", "logit"),
    "softmax": ("softmax", "softmax"),
    "temperature": ("temperature {temperature}", "温度 {temperature}"),
    "top_k": ("top {top_k}", "前 {top_k} 个"),
    "drawn": ("<- drawn", "<- 抽中"),
    "next.seed": (
        "Drawn with seed {seed}: {token}",
        "种子 {seed} 抽中：{token}",
    ),
    "ui.language": ("中文", "English"),
    "ui.choose_token": (
        "Point at a token, or tap it: everything follows it. The colour shows how much it looks at each token, in "
        "the block and head chosen above.",
        "指向或点按一个词元，所有内容都会随之变化。颜色表示在上方所选的层和头中，它对各个词元的关注程度。",
    ),
    "ui.asking": ("{token} at place {place}", "位置 {place} 的 {token}"),
    "ui.block": ("Block", "层"),
    "ui.head": ("Head", "头"),
    "ui.all_heads": (
        "All heads: a row for each block. Choose one; the arrow keys move.",
        "所有的头：每行一层。选择一个查看；可用方向键移动。",
    ),
    "ui.scores": ("Scores", "得分"),
    "ui.masked": ("Masked", "遮罩后"),
    "ui.weights": ("Weights", "权重"),
    "ui.rows": ("Row: the token that asks. Column: the token it looks at.", "行：提问的词元。列：被看的词元。"),
    "ui.looks_at": ("{token} looks at", "{token} 关注"),
    "ui.value": ("first numbers of its value", "其值的前几个数"),
    "ui.weighted": ("weighted sum", "加权和"),
    "ui.histogram": (
        "How many numbers of this block lie where, before GELU; the outermost bars hold what lies beyond. "
        "The line is GELU itself, the dots are the first numbers of the chosen token.",
        "本层各数在 GELU 之前的分布，最外侧的柱包含更远的数。曲线是 GELU 本身，圆点是所选词元最前面的几个数。",
    ),
    "ui.log": (
        "Logarithmic scale. The marked line is the chosen token; the others are the other tokens.",
        "对数刻度。突出的线是所选词元，其余为其他词元。",
    ),
    "ui.adds": ("What the blocks add to {token}", "各层给 {token} 加上的大小"),
    "ui.lens_grid": (
        "The likeliest next token after each depth (row) and each token (column); a stronger colour is surer.",
        "在每个深度（行）、每个词元（列）之后最可能的下一个词元；颜色越浓越有把握。",
    ),
    "ui.lens_of": ("After {token}, depth by depth", "在 {token} 之后，逐层来看"),
    "ui.temperature": ("Temperature", "温度"),
    "ui.top_k": ("Top-k", "Top-k"),
    "ui.all": ("all", "全部"),
    "ui.draw": ("Draw a token", "抽取一个词元"),
    "ui.drew": ("Drawn: {token} ({share})", "抽中：{token}（{share}）"),
    "ui.others": ("{count} other tokens", "其余 {count} 个词元"),
    "ui.chosen": (
        "what clearhead drew: seed {seed}, temperature {temperature}, top-k {top_k}",
        "clearhead 抽中的词元：种子 {seed}，温度 {temperature}，top-k {top_k}",
    ),
    "ui.made": (
        "Made by clearhead walk. The numbers come from one watched run of the model; the page needs no network.",
        "由 clearhead walk 生成。数字来自对模型一次运行的观察；本页不需要网络。",
    ),
}


def words(language: str) -> Mapping[str, str]:
    """All words of one of `LANGUAGES`, by key."""
    column = LANGUAGES.index(language)
    return {key: both[column] for key, both in _WORDS.items()}
