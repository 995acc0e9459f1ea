"""Agents of a user's that know the API of OpenAI alone."""

from __future__ import annotations

import json
from typing import Any

import openai


def agent(base_url: str, api_key: str, row: dict[str, Any]) -> float:
    """An agent that knows the API of OpenAI alone: it calls a tool of its own."""
    client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    tools: Any = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": parameters}}]
    messages: Any = [{"role": "user", "content": row["prompt"]}]
    first = client.chat.completions.create(model="x", messages=messages, tools=tools).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.tool_calls
    messages.append(first.message.model_dump(exclude_none=True))
    for call in first.message.tool_calls:
        given = json.loads(call.function.arguments)  # type: ignore[union-attr]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(given["a"] + given["b"])})
    stream = client.chat.completions.create(model="x", messages=messages, tools=tools, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    try:
        openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        assert "no conversation has this key" in str(error)
    else:
        raise AssertionError("a wrong key was let in")
    return float(row["answer"] in said)
