"""Conversations: turns, histories longer than the context, the command line; DialoGPT against `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call, refused
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead.chat import ChatSession
from clearhead.errors import InputError, TokenizerError
from clearhead.gpt import GPT
from clearhead.tokenizer import Tokenizer
from clearhead.tokenizer.conversation import ChatMessage
from clearhead.tokenizer.settings import TURNS_TEMPLATE

TEXT = "Hello there, how are you today? I am fine, thank you; and you? What do you like to eat and to drink? "
SAID = ["Hello there!", "how are you today", "What do you like?"]
PLAIN = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"


def save(folder: Path, **settings: Any) -> Path:
    """Save a random model of transformers with a tokenizer of GPT-2's kind."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([TEXT] * 4, 300)
    tokenizer.save(folder)
    shape = {"vocab_size": tokenizer.vocab_size, "n_positions": 64, "n_embd": 24, "n_head": 3, "n_layer": 2}
    end = tokenizer.end_of_text
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=end, eos_token_id=end, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dialogpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like DialoGPT: no chat template, and conversations among the tasks of its config."""
    return save(tmp_path_factory.mktemp("dialogpt"), task_specific_params={"conversational": {"max_length": 1000}})


@pytest.fixture(scope="module")
def gpt(dialogpt: Path) -> GPT:
    return clearhead.load(dialogpt, backend="torch")


def with_template(folder: Path, template: str) -> GPT:
    save(folder)
    (folder / "chat_template.jinja").write_text(template)
    return clearhead.load(folder, backend="torch")


def test_a_model_like_dialogpt_answers_as_in_transformers(dialogpt: Path, gpt: GPT) -> None:
    """DialoGPT's own example: what both said, each turn with the end of text behind it, is the prompt."""
    peer, tokenizer = GPT2LMHeadModel.from_pretrained(dialogpt).eval(), AutoTokenizer.from_pretrained(dialogpt)
    end = gpt.end_of_text
    assert end is not None
    session = ChatSession(gpt, temperature=0, max_new_tokens=6)
    history: list[int] = []
    for text in SAID:
        history += [*tokenizer.encode(text), end]
        assert list(session.request(text).prompt_ids) == history
        with torch.no_grad():
            whole = peer.generate(torch.tensor([history]), do_sample=False, max_new_tokens=6, pad_token_id=end)[0]
        ids = [id for id in whole[len(history) :].tolist() if id != end]
        assert "".join(session.answer(text)) == tokenizer.decode(ids)
        history += [*tokenizer.encode(tokenizer.decode(ids)), end]
    tokenizer.chat_template = TURNS_TEMPLATE
    messages = [{"role": one.role, "content": one.content} for one in session.messages]
    assert tokenizer.apply_chat_template(messages, return_dict=False) == history


def test_the_oldest_turns_are_left_out_and_a_system_message_stays(tmp_path: Path) -> None:
    gpt = with_template(tmp_path, PLAIN)
    session = ChatSession(gpt, system="Be kind.", temperature=0, max_new_tokens=8)
    forgotten = []
    for number in range(6):
        prompt = gpt.tokenizer.decode(session.request(f"turn {number}").prompt_ids)  # type: ignore[union-attr]
        assert prompt.startswith("[system] Be kind.\n[user] turn ") and prompt.endswith(f"[user] turn {number}\n")
        assert len(session.request(f"turn {number}").prompt_ids) <= gpt.config.context_length - 8 + 1
        list(session.answer(f"turn {number}"))
        forgotten.append(session.forgotten)
    assert forgotten[0] == 0 < forgotten[-1] and forgotten == sorted(forgotten)
    assert len(session.messages) == 13  # none is lost


def test_a_turn_that_is_too_long_alone_is_cut_and_said(gpt: GPT) -> None:
    session = ChatSession(gpt, max_new_tokens=4, seed=1)
    list(session.answer(TEXT * 4))
    assert "only the last 64 were used" in session.notices[0]


def test_an_answer_that_is_left_early_stays_in_the_conversation(gpt: GPT) -> None:
    session = ChatSession(gpt, temperature=0, max_new_tokens=20)
    pieces = session.answer(SAID[0])
    first = next(pieces)
    pieces.close()
    assert session.messages == [ChatMessage("user", SAID[0]), ChatMessage("assistant", first)]


def test_what_cannot_be_said_changes_nothing(tmp_path: Path) -> None:
    session = ChatSession(with_template(tmp_path, "{{ raise_exception('no') }}"), max_new_tokens=4)
    with pytest.raises(InputError, match="cannot write this conversation: no"):
        next(session.answer("Hello"))
    assert session.messages == []


def test_turns_need_an_end_of_text(gpt: GPT) -> None:
    characters = Tokenizer.of_characters(TEXT)
    with pytest.raises(TokenizerError, match="end with the end of text, and the tokenizer has none"):
        ChatSession(GPT(gpt.model, characters), turns=True)
    with pytest.raises(InputError, match="no tokenizer"):
        ChatSession(GPT(gpt.model))
    with pytest.raises(InputError, match="temperature is -1"):
        ChatSession(gpt, temperature=-1)


def test_the_command_reads_turns_from_a_pipe(dialogpt: Path, gpt: GPT) -> None:
    session = ChatSession(gpt, temperature=0, max_new_tokens=6)
    expected = "".join("".join(session.answer(text)) + "\n" for text in SAID)
    options = ["-m", dialogpt, "--backend", "torch", "--temperature", "0", "-n", "6"]
    result = call("chat", *options, stdin="\n\n".join(SAID).encode())
    assert (result.returncode, result.stdout.decode()) == (0, expected)
    assert b"template" not in result.stderr
    once = call("generate", SAID[0], "--chat", "--json", *options)
    found = json.loads(once.stdout)
    assert (found["prompt"], found["samples"][0]["text"]) == (SAID[0], session.messages[1].content)


def test_the_command_says_what_is_special(tmp_path: Path) -> None:
    save(tmp_path)
    options = ["-m", tmp_path, "--backend", "torch", "--seed", "1", "-n", "30"]
    plain = call("chat", *options, stdin=b"Hello\n" * 5)
    assert plain.returncode == 0
    assert plain.stderr.count(b"no chat template") == 1 and plain.stderr.count(b"tokens is full") == 1
    assert b"no chat template" not in call("chat", "--turns", *options, stdin=b"Hello\n").stderr
    assert "not UTF-8" in refused(call("chat", "--turns", *options, stdin=b"\xff\n"))
