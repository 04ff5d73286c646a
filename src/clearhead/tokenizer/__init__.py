"""Text to token ids and back, exactly."""

from clearhead.tokenizer.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer

__all__ = ["END_OF_TEXT", "StreamDecoder", "Tokenizer"]
