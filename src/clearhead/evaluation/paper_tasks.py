"""The other data sets of the GPT-2 paper's table 3: CBT, Penn Treebank, WikiText-103, 1BW, enwik8 and text8.

The paper does not publish its detokenizers. Where a data set separates punctuation by spaces, `detokenize_treebank` and
`detokenize_wikitext` rejoin it; perplexity is per word of the file as it is.
"""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import InputError
from clearhead.evaluation.results import TaskResult, accuracy
from clearhead.evaluation.task_files import detokenize_wikitext
from clearhead.evaluation.task_scoring import PairScorer, TaskOptions, score_text
from clearhead.gpt import GPT
from clearhead.utils.text import decode_text, read_bytes, read_text

_BLANK = "XXXXX"
_WHOLE, _HELD_OUT = 100_000_000, 5_000_000
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LCB-": "{", "-RCB-": "}", "-LSB-": "[", "-RSB-": "]"}


@dataclass(frozen=True, slots=True)
class ClozeQuestion:
    """A passage with a missing word.

    Attributes:
        before, after: the text on both sides of it.
        choices: the candidates.
        answer: the index of the right one.
    """

    before: str
    after: str
    choices: tuple[str, ...]
    answer: int


def evaluate_common_nouns(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Choose the missing common noun of each passage of the Children's Book Test."""
    return _evaluate_cbt(gpt, file, options, "cbt-cn")


def evaluate_named_entities(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Choose the missing named entity of each passage of the Children's Book Test."""
    return _evaluate_cbt(gpt, file, options, "cbt-ne")


def _evaluate_cbt(gpt: GPT, file: Path, options: TaskOptions, task: str) -> TaskResult:
    """Choose the missing word of each passage.

    A candidate's score is the log-likelihood of it and of the rest of its sentence, as in the paper.
    """
    scorer = PairScorer(gpt, options)
    questions = read_cbt(file)[: options.limit]
    pairs = [(one.before, f" {choice}{one.after}") for one in questions for choice in one.choices]
    answers = iter(scorer.score(pairs, task))
    right = []
    for one in questions:
        scores = [next(answers).logprob for _ in one.choices]
        right.append(scores.index(max(scores)) == one.answer)
    return TaskResult(task, (accuracy("acc", right),), len(right), scorer.settings())


def read_cbt(file: Path) -> list[ClozeQuestion]:
    """Read a file of the Children's Book Test: passages of 21 numbered lines, with a blank line between them.

    The last line has the sentence with XXXXX, the answer and, after another tab, the candidates with | between them.

    Raises:
        InputError: if the file is malformed.
    """
    found = []
    lines: list[str] = []
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), start=1):
        if not line.strip():
            continue
        index, _, text = line.rstrip("\n").partition(" ")
        if not index.isdigit():
            raise InputError(f"line {number} of {file} has no number; give a file of the Children's Book Test.")
        if "\t" not in text:
            lines.append(text)
            continue
        found.append(_cloze(lines, text, f"line {number} of {file}"))
        lines = []
    if not found:
        raise InputError(f"{file} contains no questions; give a file of the Children's Book Test.")
    return found


def _cloze(lines: list[str], last: str, where: str) -> ClozeQuestion:
    sentence, answer, *rest = last.split("\t")
    choices = tuple(rest[-1].strip().split("|")) if rest else ()
    if sentence.count(_BLANK) != 1 or answer not in choices:
        raise InputError(
            f"{where} is not a question of the Children's Book Test; it needs a sentence with {_BLANK}, the answer, "
            "and candidates with the answer among them."
        )
    # Detokenized as a whole, so that punctuation after the missing word joins it.
    before, _, after = detokenize_treebank(" ".join([*lines, sentence])).partition(_BLANK)
    return ClozeQuestion(before.rstrip(), after, choices, choices.index(answer))


def detokenize_treebank(text: str) -> str:
    """Undo the tokenization of the Penn Treebank, as far as it can be undone: quotes, brackets, contractions, marks."""
    for code, mark in _BRACKETS.items():
        text = text.replace(code, mark)
    text = re.sub(r"(``|`) ?", lambda match: '"' if match[1] == "``" else "'", text)
    text = re.sub(r" ?''", '"', text)
    text = re.sub(r" ([,.;:!?%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{$£#]) ", r"\1", text)
    text = re.sub(r" ('(?:s|S|t|re|ve|m|ll|d|D)\b)", r"\1", text)
    return re.sub(r" n't\b", "n't", text)


def evaluate_treebank(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of the Penn Treebank per original word, on detokenized text."""
    text = read_text(file)
    return score_text(gpt, detokenize_treebank(text), text, options, "ptb")


def evaluate_wikitext103(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of WikiText-103 per original word, on detokenized text."""
    text = read_text(file)
    return score_text(gpt, detokenize_wikitext(text), text, options, "wikitext103")


def evaluate_billion_words(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of the One Billion Word benchmark per original word, on detokenized text."""
    text = read_text(file)
    return score_text(gpt, detokenize_treebank(text), text, options, "1bw")


def evaluate_enwik8(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute bits per byte of enwik8."""
    return _score_test_split(gpt, file, options, "enwik8")


def evaluate_text8(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute bits per character of text8."""
    return _score_test_split(gpt, file, options, "text8")


def _score_test_split(gpt: GPT, file: Path, options: TaskOptions, task: str) -> TaskResult:
    """Score a file; of the full 100,000,000 bytes, only the last 5,000,000, which are the test split by convention."""
    data = read_bytes(file)
    text = decode_text(_whole_characters(data[-_HELD_OUT:]) if len(data) == _WHOLE else data, str(file))
    return score_text(gpt, text, text, options, task)


def _whole_characters(data: bytes) -> bytes:
    """Drop characters that a cut has left incomplete at either end; other invalid bytes stay and are reported later."""
    start = next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data[start:])
    except UnicodeDecodeError:
        return data
    return data[start : len(data) - len(decoder.getstate()[0])]
