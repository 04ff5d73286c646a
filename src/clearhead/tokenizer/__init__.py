"""Text to token ids and back, exactly.

GPT-2 does not read letters, it reads *tokens*: pieces of text from a fixed list, each with a number.
The list was made by byte-pair encoding (Sennrich et al. 2016, over bytes as in section 2.2 of the
GPT-2 paper). The 256 bytes are the first tokens, so that every text can be encoded; then the pair of
tokens that is adjacent most often in a corpus becomes a new token, again and again. To
encode, text is first split into words, numbers, punctuation and white space, and in each piece the pairs
are merged in the order in which they were learned.
"""

from clearhead.tokenizer.definition import END_OF_TEXT
from clearhead.tokenizer.stream import StreamDecoder
from clearhead.tokenizer.tokenizer import Tokenizer

__all__ = ["END_OF_TEXT", "StreamDecoder", "Tokenizer"]
