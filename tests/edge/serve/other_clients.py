"""What clients of other projects get from a server: run by `.venv-clients/bin/python`.

    python other_clients.py CLIENT URL MODEL

prints what it got as JSON. Each client asks "hello", once whole and once as a stream.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HELLO = [{"role": "user", "content": "hello"}]


def ask_openai(url: str, model: str) -> list[Any]:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    whole = client.chat.completions.create(model=model, messages=HELLO)  # type: ignore[arg-type]
    chunks = client.chat.completions.create(model=model, messages=HELLO, stream=True)  # type: ignore[call-overload]
    streamed = "".join(each.choices[0].delta.content or "" for each in chunks)
    answer = client.responses.create(model=model, input="hello").output_text
    return [whole.choices[0].message.content, streamed, answer]


def ask_anthropic(url: str, model: str) -> list[Any]:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none")
    asked: dict[str, Any] = {"model": model, "messages": HELLO, "system": "be brief"}
    whole = client.messages.create(max_tokens=50, **asked)
    with client.messages.stream(max_tokens=50, **asked) as stream:
        streamed, last = "".join(stream.text_stream), stream.get_final_message()
    n_prompt = client.messages.count_tokens(**asked).input_tokens
    for counts in (whole.usage, last.usage):
        assert counts.input_tokens + (counts.cache_read_input_tokens or 0) == n_prompt
    assert whole.stop_reason == last.stop_reason == "end_turn"
    try:
        client.messages.create(max_tokens=0, **asked)
    except anthropic.BadRequestError as error:
        assert "max_tokens" in error.message
    else:
        raise AssertionError("an answer of no tokens was not refused")
    return [whole.content[0].text, streamed, last.content[0].text]


def embed_openai(url: str, model: str) -> list[Any]:
    import openai
    from langchain_openai import OpenAIEmbeddings

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    one = client.embeddings.create(model=model, input="hello").data[0].embedding
    chain = OpenAIEmbeddings(
        base_url=f"{url}/v1", model=model, api_key="none", check_embedding_ctx_length=False
    )  # type: ignore[call-arg, arg-type]
    return [one, chain.embed_query("hello"), chain.embed_documents(["hello", "there"])[0]]


def embed_ollama(url: str, model: str) -> list[Any]:
    import ollama
    from langchain_ollama import OllamaEmbeddings

    one = ollama.Client(url).embed(model, "hello").embeddings[0]
    chain = OllamaEmbeddings(base_url=url, model=model)
    return [list(one), chain.embed_query("hello"), chain.embed_documents(["hello", "there"])[0]]


def tokenize_lm_eval(url: str, model: str) -> list[Any]:
    from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support

    assert check_remote_tokenizer_support(f"{url}/v1/completions")
    tokenizer = RemoteTokenizer(f"{url}/v1/completions")
    prompt = tokenizer.apply_chat_template(HELLO, bos_token=tokenizer.bos_token)
    assert "hello" in prompt and tokenizer.eos_token_id is not None
    return [tokenizer.decode(tokenizer.encode(text)) for text in ("hello", "ž €")]


def llm_version() -> str:
    """Returns the version of llm."""
    return "0.36"


def call_llm(url: str, model: str) -> list[Any]:
    program = str(Path(sys.executable).with_name("llm"))
    command = [program, "openai", "endpoint", f"{url}/v1", "hello", "-m", model]
    command += ["-T", "llm_version"]
    return [
        subprocess.run([*command, *rest], capture_output=True, text=True, check=True).stdout.strip()
        for rest in ([], ["--no-stream"], ["--responses"])
    ]


def call_langchain(url: str, model: str) -> list[Any]:
    from langchain.agents import create_agent
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI

    found = []
    for chat in (
        ChatOpenAI(base_url=f"{url}/v1", model=model, api_key="none"),  # type: ignore[arg-type]
        ChatOllama(base_url=url, model=model),
    ):
        agent = create_agent(chat, [llm_version])
        said = agent.invoke({"messages": [("user", "hello")]})["messages"]
        assert [each.type for each in said] == ["human", "ai", "tool", "ai"], said
        assert said[2].content == "0.36"
        found.append(said[-1].content)
    return found


def call_anthropic(url: str, model: str) -> list[Any]:
    import anthropic

    client, found = anthropic.Anthropic(base_url=url, api_key="none"), []
    tools: Any = [{"name": "llm_version", "input_schema": {"type": "object", "properties": {}}}]
    for is_streamed in (False, True):
        messages: list[Any] = list(HELLO)
        for reason in ("tool_use", "end_turn"):
            asked: Any = {"model": model, "messages": messages, "tools": tools, "max_tokens": 99}
            if is_streamed:
                with client.messages.stream(**asked) as stream:
                    answer = stream.get_final_message()
            else:
                answer = client.messages.create(**asked)
            assert answer.stop_reason == reason, answer
            messages.append({"role": "assistant", "content": answer.content})
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": llm_version()}
                for block in answer.content
                if block.type == "tool_use" and block.name == "llm_version" and block.input == {}
            ]
            messages.append({"role": "user", "content": results})
        found.append(answer.content[0].text)
    return found


def ask_litellm(url: str, model: str) -> list[Any]:
    import litellm

    litellm.telemetry = False
    ours: dict[str, Any] = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
    whole = litellm.completion(messages=HELLO, **ours)
    chunks = litellm.completion(messages=HELLO, stream=True, **ours)
    streamed = "".join(each.choices[0].delta.content or "" for each in chunks)
    ours = {"model": f"ollama_chat/{model}", "api_base": url}
    return [whole.choices[0].message.content, streamed,
            litellm.completion(messages=HELLO, **ours).choices[0].message.content]  # fmt: skip


def ask_llm(url: str, model: str) -> list[Any]:
    def run(*options: str) -> str:
        program = Path(sys.executable).with_name("llm")
        command = [str(program), "openai", "endpoint", f"{url}/v1", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    listed = run("--models").splitlines()
    assert model in listed, listed
    hello = ("hello", "-m", model)
    return [run(*hello, "--no-stream"), run(*hello), run(*hello, "--responses")]


def ask_langchain(url: str, model: str) -> list[Any]:
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI

    chats = [ChatOpenAI(base_url=f"{url}/v1", model=model, api_key="none"),  # type: ignore[arg-type]
             ChatOllama(base_url=url, model=model, validate_model_on_init=True)]  # fmt: skip
    streamed = ["".join(str(part.content) for part in chat.stream("hello")) for chat in chats]
    return [*(chat.invoke("hello").content for chat in chats), *streamed]


if __name__ == "__main__":
    asked = {"openai": ask_openai, "anthropic": ask_anthropic, "litellm": ask_litellm,
             "llm": ask_llm, "langchain": ask_langchain, "embed_openai": embed_openai,
             "embed_ollama": embed_ollama, "lm_eval": tokenize_lm_eval,
             "call_llm": call_llm, "call_langchain": call_langchain,
             "call_anthropic": call_anthropic}[sys.argv[1]]  # fmt: skip
    print(json.dumps(asked(*sys.argv[2:])))
