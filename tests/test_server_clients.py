"""Programs that people use with OpenAI's API, against the server on a real socket: LangChain and `llm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import PROMPTS, TestServer, alone

from clearhead.gpt import GPT
from clearhead.tokenizer.conversation import ChatMessage, ConversationFormat

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients and what they import

MODELS_FILE = """\
- model_id: tiny
  model_name: clearhead
  api_base: {url}/v1
  completion: true
- model_id: tiny-chat
  model_name: clearhead
  api_base: {url}/v1
"""


def test_langchain_completes_streams_and_batches(server: TestServer, tiny_gpt: GPT) -> None:
    from langchain_openai import OpenAI

    settings: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "unused", "model": "clearhead"}
    model = OpenAI(**settings, max_tokens=12, seed=3, temperature=1.0, max_retries=0)
    expected = alone(tiny_gpt, PROMPTS[0], seed=3, max_new_tokens=12).text
    assert model.invoke(PROMPTS[0]) == expected
    assert "".join(model.stream(PROMPTS[0])) == expected
    greedy = OpenAI(**settings, max_tokens=12, temperature=0, max_retries=0)
    assert greedy.batch(PROMPTS) == [alone(tiny_gpt, one, temperature=0, max_new_tokens=12).text for one in PROMPTS]


def test_langchain_chats(server: TestServer, tiny_gpt: GPT) -> None:
    from langchain_openai import ChatOpenAI

    assert tiny_gpt.tokenizer is not None
    conversation = ConversationFormat(tiny_gpt.tokenizer)
    ids = conversation.encode([ChatMessage("system", "A."), ChatMessage("user", "it")])
    text = alone(tiny_gpt, ids, seed=3, max_new_tokens=12, stop=conversation.stop).text
    settings: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "unused", "model": "clearhead"}
    model = ChatOpenAI(**settings, max_completion_tokens=12, seed=3, temperature=1.0, max_retries=0)
    messages = [("system", "A."), ("user", "it")]
    answer = model.invoke(messages)
    assert answer.content == conversation.strip_beginning(text)
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] == len(ids)
    assert "".join(str(piece.content) for piece in model.stream(messages)) == answer.content


@pytest.mark.parametrize("streaming", [(), ("--no-stream",)])
def test_llm_reads_a_model_from_its_settings_file(
    server: TestServer, tiny_gpt: GPT, tmp_path: Path, streaming: tuple[str, ...]
) -> None:
    assert tiny_gpt.tokenizer is not None
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS_FILE.format(url=server.url))

    def ask(model: str, prompt: str, *options: str) -> str:
        command = [sys.executable, "-m", "llm", "-m", model, *options, *streaming, prompt]
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300).stdout.decode()

    options = ("-o", "max_tokens", "12", "-o", "temperature", "0")
    assert (
        ask("tiny", PROMPTS[1], *options).strip()
        == alone(tiny_gpt, PROMPTS[1], temperature=0, max_new_tokens=12).text.strip()
    )
    conversation = ConversationFormat(tiny_gpt.tokenizer)
    ids = conversation.encode([ChatMessage("system", "A."), ChatMessage("user", "it")])
    expected = alone(tiny_gpt, ids, temperature=0, max_new_tokens=12, stop=conversation.stop).text
    assert ask("tiny-chat", "it", *options, "-s", "A.").strip() == expected.strip()


def test_lm_eval_runs_tasks_with_the_results_of_its_own_model(tmp_path: Path) -> None:
    """A multiple-choice task and a generating one, from files, with the server's tokenizer and with a local one."""
    import lm_eval
    from lm_eval.tasks import TaskManager
    from served import serving

    import clearhead
    from clearhead.loading import bundled

    write_tasks(tmp_path)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def run(kind: str, **arguments: Any) -> dict[str, Any]:
        found = lm_eval.simple_evaluate(
            model=kind, model_args=arguments, tasks=["endings", "stories"], task_manager=tasks, log_samples=True,
            bootstrap_iters=0, batch_size=2, device="cpu",
        )  # fmt: skip
        assert found is not None
        return dict(found["samples"])

    expected = run("hf", pretrained=str(bundled()), dtype="float32")
    with serving(clearhead.load()) as server:
        for backend in ("remote", "huggingface"):
            found = run(
                "local-completions", model="clearhead", base_url=f"{server.url}/v1/completions", max_length=256,
                tokenizer=str(bundled()), tokenizer_backend=backend,
            )  # fmt: skip
            for ours, theirs in zip(found["endings"], expected["endings"], strict=True):
                pairs = zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True)
                for (logprob, greedy), (wanted, wanted_greedy) in pairs:
                    assert float(logprob) == pytest.approx(float(wanted), abs=1e-4) and greedy == wanted_greedy
                assert ours["acc"] == theirs["acc"]
            assert [one["resps"] for one in found["stories"]] == [one["resps"] for one in expected["stories"]]


def write_tasks(folder: Path) -> None:
    """Write two tasks of lm-eval and their data."""
    endings = [
        {"text": "Once upon a", "endings": [" time", " dog", " the"], "right": 0},
        {"text": "The little girl was very", "endings": [" happy", " happy and", " tree"], "right": 1},
        {"text": "北京 🙂", "endings": [" naïve", " dog"], "right": 0},
    ]
    stories = [{"text": text, "end": ""} for text in ("Once upon a time", "Tom and Lily went to", "The dog")]
    for name, rows in (("endings", endings), ("stories", stories)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = "task: {0}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {1}\ntest_split: test\n"
    (folder / "endings.yaml").write_text(
        head.format("endings", folder / "endings.jsonl")
        + "output_type: multiple_choice\ndoc_to_text: text\ndoc_to_choice: endings\ndoc_to_target: right\n"
        + "target_delimiter: ''\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "stories.yaml").write_text(
        head.format("stories", folder / "stories.jsonl")
        + "output_type: generate_until\ndoc_to_text: text\ndoc_to_target: end\n"
        + "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 12\n  do_sample: false\n  temperature: 0.0\n"
        + "metric_list:\n  - metric: exact_match\n"
    )
