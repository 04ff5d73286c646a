"""Small whole files of every kind, which the fuzzers damage; made anew by the libraries that usually write them."""

from __future__ import annotations

import io
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer

CASES = [
    ("tokenizer", "bpe", "tokenizer.json"),
    ("tokenizer", "characters", "tokenizer.json"),
    ("tokenizer", "word_piece", "tokenizer.json"),
    ("tokenizer", "unigram", "tokenizer.json"),
    ("tokenizer", "byte_fallback", "tokenizer.json"),
    ("tokenizer", "bpe_files", "vocab.json"),
    ("tokenizer", "bpe_files", "merges.txt"),
    ("tokenizer", "bpe_files", "tokenizer_config.json"),
    ("tokenizer", "bpe_files", "special_tokens_map.json"),
    ("tokenizer", "bpe_files", "added_tokens.json"),
    ("tokenizer", "word_piece_files", "vocab.txt"),
    ("tokenizer", "word_piece_files", "tokenizer_config.json"),
    ("tokenizer", "sentence_piece", "spiece.model"),
    ("tokenizer", "nanogpt", "meta.pkl"),
    ("weights", "huggingface", "model.safetensors"),
    ("weights", "huggingface", "config.json"),
    ("weights", "sharded", "model.safetensors.index.json"),
    ("weights", "pytorch", "pytorch_model.bin"),
    ("weights", "openai", "model.ckpt.index"),
    ("weights", "openai", "model.ckpt.data-00000-of-00001"),
    ("weights", "openai", "hparams.json"),
    ("weights", "gguf", "model.gguf"),
    ("weights", "llmc", "model.bin"),
    ("weights", "onnx", "model.onnx"),
    ("config", "huggingface", "config.json"),
    ("config", "openai", "hparams.json"),
]
"""A reader of the worker, the folder of a seed, and the file in it that is damaged."""

_CORPUS = ["the quick brown fox, the lazy dog; naïve 你好 🙂\n" * 8]


@cache
def parsed(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return json.loads(path.read_bytes())


def make(root: Path) -> dict[str, Path]:
    """Make the folder of every seed, by its name."""
    for name, library in (
        ("word_piece", _word_piece()),
        ("unigram", _unigram()),
        ("byte_fallback", _byte_fallback()),
    ):
        (root / name).mkdir()
        library.save(str(root / name / "tokenizer.json"))
    bpe = Tokenizer.train(_CORPUS, 275)
    bpe.save(root / "bpe")
    Tokenizer.of_characters(set("the quick, brown"), end_of_text=True).save(root / "characters")
    _bpe_files(bpe, root / "bpe_files")
    _family(root)
    _models(bpe, root)
    return {folder.name: folder for folder in root.iterdir()}


def _bpe_files(bpe: Tokenizer, folder: Path) -> None:
    bpe.save(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": False, "pad_token": "<pad>"}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|endoftext|>", "lstrip": False}, "additional_special_tokens": ["<s>"]})
    )
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 275, "<s>": 276, "fox": 277}))


def _family(root: Path) -> None:
    for name in ("word_piece_files", "sentence_piece", "nanogpt"):
        (root / name).mkdir()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "quick", "a", "##a", "你", "好", "."]
    (root / "word_piece_files" / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    (root / "word_piece_files" / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (root / "sentence_piece" / "spiece.model").write_bytes(model.getvalue())
    stoi = {character: id for id, character in enumerate("\n abcdefgh,.é你")}
    (root / "nanogpt" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(stoi), "stoi": stoi}))


def _models(bpe: Tokenizer, root: Path) -> None:
    config = GPTConfig(
        vocab_size=275, context_length=8, emb_dim=8, n_heads=2, n_layers=2, qkv_bias=True, tie_weights=True
    )
    tensors = {name: tensor.detach().numpy() for name, tensor in GPTModel(config).state_dict().items()}
    weights.save_huggingface(root / "huggingface", config, tensors)
    weights.save_huggingface(root / "sharded", config, tensors, shard_bytes=8000)
    for folder, file, layout in (("gguf", "model.gguf", "gguf"), ("llmc", "model.bin", "llmc")):
        (root / folder).mkdir()
        bpe.save(root / "with_tokenizer")
        weights.save_huggingface(root / "with_tokenizer", config, tensors)
        weights.convert(root / "with_tokenizer", root / folder / file, layout)
    weights.convert(root / "huggingface", root / "openai", "openai")
    weights.convert(root / "huggingface", root / "onnx", "onnx")
    (root / "pytorch").mkdir()
    (root / "pytorch" / "config.json").write_bytes((root / "huggingface" / "config.json").read_bytes())
    opened = weights.open(root / "huggingface")
    state = {name: torch.from_numpy(opened.read(name).copy()) for name in opened.tensors}
    torch.save(state, root / "pytorch" / "pytorch_model.bin")


def _word_piece() -> Any:
    vocab = ["[UNK]", "[SEP]", "the", "##the", "q", "##uick", "a", "##a", ".", "你", "##好", "[CLS]"]
    opened = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    opened.normalizer = normalizers.BertNormalizer()
    opened.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    opened.decoder = decoders.WordPiece()
    opened.add_special_tokens(["[SEP]", "[CLS]"])
    return opened


def _unigram() -> Any:
    scores = [("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("a", -2.0), ("b", -2.5), ("é", -3.0), ("</s>", -9.0)]
    opened = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0))
    opened.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    opened.pre_tokenizer = pre_tokenizers.Metaspace()
    opened.decoder = decoders.Metaspace()
    opened.add_special_tokens(["</s>"])
    return opened


def _byte_fallback() -> Any:
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for token in ["▁", "a", "b", "▁a", "ab"]:
        vocab[token] = len(vocab)
    opened = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True))
    opened.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    opened.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return opened
