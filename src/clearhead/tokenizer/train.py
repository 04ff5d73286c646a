"""Learn a vocabulary from texts by byte-pair encoding (Sennrich et al. 2016; GPT-2 paper, section 2.2)."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable

from clearhead.errors import TokenizerError
from clearhead.tokenizer.byte_letters import LETTER_OF_BYTE
from clearhead.tokenizer.definition import END_OF_TEXT, Definition, byte_level_bpe
from clearhead.tokenizer.unicode import check_unicode
from clearhead.tokenizer.validation import parse_merges


def learn_merges(texts: Iterable[str], vocab_size: int, show_progress: bool) -> Definition:
    """Return the definition of a new GPT-2 vocabulary: 256 bytes, the learned merges, and the end of text last.

    Raises:
        TokenizerError: if the vocabulary is too small, or larger than the texts can fill.
    """
    if vocab_size < 257:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} was asked for; the least is 257: 256 bytes and {END_OF_TEXT}."
        )
    import tokenizers

    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=list(LETTER_OF_BYTE.values()),
        special_tokens=[],
        show_progress=show_progress,
    )
    # The marks between documents are not text: merges learned from them would be wasted.
    documents = (part for text in texts for part in check_unicode(text).split(END_OF_TEXT))
    learner.train_from_iterator(documents, trainer=trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=operator.itemgetter(1)))
    if len(vocab) < vocab_size - 1:
        raise TokenizerError(
            f"the text is enough for a vocabulary of {len(vocab) + 1} tokens at most, but {vocab_size} were asked for; "
            f"give more text, or ask for {len(vocab) + 1} at most."
        )
    vocab[END_OF_TEXT] = len(vocab)
    return byte_level_bpe(vocab, parse_merges(model["merges"], "the trained model"))
