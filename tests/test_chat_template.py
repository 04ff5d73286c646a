"""Conversations: a model's chat template against `transformers`, and the plain text of a base model."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import TEXT, alone, serving
from transformers import AutoTokenizer

from clearhead.errors import InputError, TokenizerError
from clearhead.gpt import GPT
from clearhead.tokenizer import Tokenizer
from clearhead.tokenizer.chat_template import ChatTemplate
from clearhead.tokenizer.conversation import ChatMessage, ConversationFormat

pytest_plugins = ["server_fixtures"]

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
ALTERNATING = """\
{% for message in messages %}
  {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('the roles must alternate') }}
  {% endif %}
  {% if loop.index0 > 8 %}{% break %}{% endif %}
  {% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
  {% else %}{{ message | tojson }}{{ tools is none }}
  {% endif %}
{% endfor %}
"""
MESSAGES = [
    {"role": "user", "content": " What is 2 + 2? 'über' <|endoftext|>"},
    {"role": "assistant", "content": "4 🙂"},
    {"role": "user", "content": "And\nthen?"},
]


def folder_with(path: Path, template: Any, file: str | None = None) -> Path:
    Tokenizer.train([TEXT] * 4, 300).save(path)
    config = path / "tokenizer_config.json"
    if template is not None:
        config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    if file is not None:
        (path / "chat_template.jinja").write_text(file)
    return path


@pytest.mark.parametrize("template", [CHATML, ALTERNATING])
def test_a_template_writes_what_transformers_writes(tmp_path: Path, template: str) -> None:
    folder = folder_with(tmp_path, template)
    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.from_folder(folder)
    ours = ConversationFormat(tokenizer)
    messages = [ChatMessage(**one) for one in MESSAGES]
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ours.text(messages) == expected
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert ours.encode(messages) == list(ids)
    assert ours.has_template and ours.stop == () and ours.strip_beginning(" a") == " a"


def test_where_a_template_is_found_and_that_saving_keeps_it(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    for name, template, file in (("a", several, None), ("b", "no", CHATML), ("c", None, CHATML), ("d", CHATML, None)):
        folder = folder_with(tmp_path / name, template, file)
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).get_chat_template() == CHATML
        tokenizer.save(tmp_path / f"{name}-saved")
        assert AutoTokenizer.from_pretrained(tmp_path / f"{name}-saved").chat_template == CHATML
        assert pickle.loads(pickle.dumps(tokenizer)).chat_template == CHATML
    assert Tokenizer.from_folder(folder_with(tmp_path / "base", None)).chat_template is None


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages[9].content.upper() }}", "cannot write this conversation"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% for i in range(10**9) %}{% endfor %}", "too big"),
    ],
)
def test_a_template_may_refuse_and_is_not_trusted(template: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ChatTemplate(template, {}).render(MESSAGES)


def test_a_broken_template_is_named() -> None:
    with pytest.raises(TokenizerError, match="not valid Jinja"):
        ChatTemplate("{% for %}", {})


@pytest.fixture
def chat_gpt(tiny_gpt: GPT) -> Callable[[str], GPT]:
    def with_template(template: str) -> GPT:
        assert tiny_gpt.tokenizer is not None
        tokenizer = pickle.loads(pickle.dumps(tiny_gpt.tokenizer))
        tokenizer.chat_template = template
        return GPT(tiny_gpt.model, tokenizer, runner=tiny_gpt.runner)

    return with_template


def test_the_server_uses_the_template(chat_gpt: Callable[[str], GPT]) -> None:
    gpt = chat_gpt("{% for one in messages %}{{ one.content }}{{ eos_token }}{% endfor %} it")
    assert gpt.tokenizer is not None
    ids = gpt.tokenizer.encode("a day<|endoftext|> it", special=True)
    expected = alone(gpt, ids, seed=5, max_new_tokens=12)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "a day"}], "seed": 5, "max_tokens": 12}
    with serving(gpt) as server, httpx.Client(base_url=server.url) as http:
        answer = http.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert answer["usage"]["prompt_tokens"] == len(ids)
        (model,) = http.get("/v1/models").json()["data"]
        assert model["base_model"] is False and "chat template" in model["description"]
        assert http.get("/tokenizer_info").json()["chat_template"] == gpt.tokenizer.chat_template


def test_the_server_passes_on_what_a_template_refuses(chat_gpt: Callable[[str], GPT]) -> None:
    with serving(chat_gpt("{{ raise_exception('no system messages here') }}")) as server:
        body = {"messages": [{"role": "system", "content": "a"}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "messages" and "no system messages here" in error["message"]
