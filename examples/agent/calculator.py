"""The agent's task: products of two 4-digit numbers, which a tiny model cannot work out by itself, and a calculator."""

from __future__ import annotations

import json
from typing import Any

import openai

from yatt.environments.builtin.calculator import Calculator
from yatt.environments.tools import tool_schemas


class Products(Calculator):
    """A calculator, and the reward: 1 where the last answer is the right product, anything else 0."""

    def reset(self, answer: str) -> None:
        self._wanted, self._said, self._asked = answer, "", 0

    def calculate(self, expression: str) -> str:
        """Work out an expression.

        Args:
            expression: Numbers with + - * / and parentheses between them.
        """
        self._asked += 1
        return super().calculate(expression)

    def step(self, answer: str) -> None:
        self._said = answer

    def reward(self) -> dict[str, float]:
        return {"reward": float(self._said == self._wanted), "asked": float(self._asked > 0)}


CONNECTIONS = openai.DefaultHttpxClient()
"""Of all conversations: a client that makes its own takes a tenth of a second for it."""
TOOLS: Any = tool_schemas(Products, "Products")


def agent(base_url: str, api_key: str, row: dict[str, Any]) -> dict[str, float]:
    """The same task for an agent of its own, which knows the API of OpenAI and nothing of this program."""
    client = openai.OpenAI(base_url=base_url, api_key=api_key, http_client=CONNECTIONS)
    products, messages = Products(), list(row["messages"])
    products.reset(row["answer"])
    for _ in range(2):
        try:
            said = client.chat.completions.create(model="policy", messages=messages, tools=TOOLS).choices[0].message
        except openai.BadRequestError:  # a limit of the run: what was said until then counts
            break
        messages.append(said.model_dump(exclude_none=True))
        for call in said.tool_calls or ():
            try:
                result = products.calculate(**json.loads(call.function.arguments))
            except (TypeError, ValueError, ArithmeticError) as error:
                result = f"error: {error}"
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not said.tool_calls:
            products.step(said.content or "")
            break
    return products.reward()
