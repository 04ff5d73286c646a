"""Prompt templates: how an instruction becomes the text that precedes a response."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer

_FIELD = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class PromptFields:
    """The parts of a prompt.

    Attributes:
        instruction: what to do.
        input: what to do it with; may be empty.
    """

    instruction: str
    input: str = ""

    @property
    def prompt(self) -> str:
        """The instruction and, after a blank line, the input."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The text before a response, with `{prompt}`, or `{instruction}` and `{input}`, for the parts of the prompt.

    Special tokens that the template spells out, such as `<|endoftext|>`, become the tokens themselves; what the fields
    contain is always text.

    Attributes:
        text: the template of a prompt with an input.
        without_input: the template of a prompt without one.
    """

    text: str
    without_input: str

    @classmethod
    def from_recipe(cls, text: str) -> PromptTemplate:
        """Parse the recipe's template: a name (`alpaca`, `phi3`), or a text with fields.

        Raises:
            TrainingError: if it has an unknown field, or none.
        """
        if text in NAMED:
            return NAMED[text]
        fields = _FIELD.findall(text)
        unknown = sorted(set(fields) - {"prompt", "instruction", "input"})
        if unknown:
            raise TrainingError(
                f"the template {text!r} has the unknown field {{{unknown[0]}}}; known are {{prompt}}, {{instruction}} "
                "and {input}."
            )
        if sorted(set(fields)) not in (["prompt"], ["instruction"], ["input", "instruction"]):
            raise TrainingError(
                f"the template {text!r} must contain {{prompt}} once, or {{instruction}} and perhaps {{input}}; or be "
                f"one of {', '.join(NAMED)}."
            )
        if len(fields) != len(set(fields)):
            raise TrainingError(f"the template {text!r} must contain each field once.")
        return cls(text, text)

    def fill(self, fields: PromptFields) -> str:
        """Return the text before a response."""
        return _FIELD.sub(lambda match: str(getattr(fields, match[1])), self._choose(fields))

    def encode(self, fields: PromptFields, tokenizer: Tokenizer) -> list[int]:
        """Return the tokens before a response.

        Raises:
            TokenizerError: if the vocabulary cannot encode a field.
        """
        specials = sorted(tokenizer.special_tokens, key=len, reverse=True)
        template = self._choose(fields)
        parts = re.split(f"({'|'.join(map(re.escape, specials))})", template) if specials else [template]
        ids: list[int] = []
        for part in parts:
            if part in tokenizer.special_tokens:
                ids.append(tokenizer.special_tokens[part])
            else:
                ids += tokenizer.encode(_FIELD.sub(lambda match: str(getattr(fields, match[1])), part))
        return ids

    def to_jinja(self) -> str:
        """Return the template as `transformers` stores it with a tokenizer (`chat_template`)."""
        before, _, after = _FIELD.sub("\0", self.without_input).partition("\0")
        after = after.replace("\0", "")
        said = "{{ message['content'] }}{{ eos_token }}"
        asked = f"{{{{ {before!r} + message['content'] + {after!r} }}}}"
        choice = f"{{% if message['role'] == 'assistant' %}}{said}{{% else %}}{asked}{{% endif %}}"
        return f"{{% for message in messages %}}{choice}{{% endfor %}}"

    def _choose(self, fields: PromptFields) -> str:
        return self.text if fields.input else self.without_input


_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}"
)
NAMED = {
    "alpaca": PromptTemplate(f"{_ALPACA}\n\n### Input:\n{{input}}\n\n### Response:\n", f"{_ALPACA}\n\n### Response:\n"),
    "phi3": PromptTemplate(
        "<|user|>\n{instruction}\n{input}\n\n<|assistant|>\n", "<|user|>\n{instruction}\n\n<|assistant|>\n"
    ),
}
"""The templates of the book's chapter 7, by name."""
