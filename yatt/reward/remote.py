"""A judge behind an OpenAI-compatible chat endpoint."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any

import openai

from yatt.config.schema import JudgeConfig
from yatt.config.secrets import masked
from yatt.errors import ConfigError
from yatt.reward.judge import Failure
from yatt.types import Media

PROBE_SECONDS = 10.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
PASSING = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)
"""Errors that another try may mend."""

for _name in ("httpx", "httpx2", "openai"):  # they would write a line for every judgement
    logging.getLogger(_name).setLevel(logging.WARNING)


class RemoteAsker:
    """Implements `yatt.reward.judge.Asker`. `concurrency` requests are under way at most. An error that may pass is
    tried again, after the pause that the endpoint asks for or a growing one of our own, as long as `timeout` allows. It
    is asked in text."""

    sees = False

    def __init__(self, name: str, config: JudgeConfig) -> None:
        self._at = f"reward.models.{name}"
        assert config.model is not None  # as the rules of a judge at a url have seen
        self._config, self._model = config, config.model
        self._slots = asyncio.Semaphore(config.concurrency)
        self._key = ""
        self._client: openai.AsyncOpenAI

    async def start(self) -> None:
        """Asks nothing yet. Raises ConfigError where the environment of this process has no key."""
        variable = self._config.key_env
        self._key = os.environ.get(variable, "") if variable is not None else ""
        if variable is not None and not self._key:
            raise ConfigError(f"{self._at}.key_env={variable}: no such variable in the environment of a controller")
        # Pauses are ours: the client's pass the deadline, and lose what the endpoint said.
        self._client = openai.AsyncOpenAI(
            base_url=self._config.url, api_key=self._key or "none", timeout=self._config.timeout, max_retries=0
        )

    async def ask(
        self, texts: Sequence[str], seeds: Sequence[int], images: Sequence[Media] = ()
    ) -> list[str | Failure]:
        """Waits for the endpoint: for each text at most `timeout` seconds after its turn has come."""
        return await asyncio.gather(*map(self._ask, texts, seeds))

    async def probe(self) -> None:
        """One call of one token, within `PROBE_SECONDS`. Raises ConfigError where the endpoint refuses it: the key, the
        model or the request; cannot be reached; or does not answer."""
        await self.start()
        url, model = masked(self._config.url), self._model
        try:
            reply = _read(await self._complete("Say yes.", 0, max_tokens=1, seconds=PROBE_SECONDS))
            if isinstance(reply, Failure) and not reply.unparsed:
                raise ConfigError(f"{self._at}.url={url}: {reply.detail}")
        except TimeoutError:
            raise ConfigError(f"{self._at}.url={url} gives no answer within {PROBE_SECONDS:g} s") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            key = self._config.key_env or "null"
            raise ConfigError(f"{self._at}.key_env={key}: {url} refuses the key: {self._words(error)}") from None
        except openai.NotFoundError as error:
            raise ConfigError(f"{self._at}.model={model}: {self._words(error)}; {await self._served()}") from None
        except openai.OpenAIError as error:
            raise ConfigError(f"{self._at}.url={url}: {self._words(error)}") from None
        finally:
            await self.close()

    async def close(self) -> None:
        """Requests that are under way fail."""
        if hasattr(self, "_client"):
            await self._client.close()

    async def _ask(self, text: str, seed: int) -> str | Failure:
        limit = self._config.timeout
        async with self._slots:
            try:
                return _read(await self._complete(text, seed, max_tokens=self._config.max_tokens, seconds=limit))
            except TimeoutError:
                return Failure("timed_out", f"no answer within {limit:g} s")
            except openai.OpenAIError as error:
                return Failure("failed", self._words(error))

    async def _complete(self, text: str, seed: int, *, max_tokens: int, seconds: float) -> Any:
        """The endpoint's completion. Raises TimeoutError where it does not answer in time, and its last error where
        that does not pass, or not soon enough."""
        loop, draw = asyncio.get_running_loop(), random.Random(seed)
        deadline = loop.time() + seconds
        for attempt in count():
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._client.chat.completions.create(
                        model=self._model,
                        messages=[{"role": "user", "content": text}],
                        temperature=self._config.temperature,
                        max_tokens=max_tokens,
                        seed=seed,
                        timeout=seconds,
                    )
            except openai.APITimeoutError:
                raise TimeoutError from None
            except PASSING as error:
                pause = _asked_pause(error)
                if pause is None:
                    pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * draw.uniform(0.5, 1)
                if loop.time() + pause >= deadline:
                    raise
            except ValueError as error:
                raise openai.OpenAIError(f"answers no JSON: {error}") from None
            await asyncio.sleep(pause)

    async def _served(self) -> str:
        """The models that the endpoint has, for the error about one that it refuses."""
        with suppress(openai.OpenAIError, TimeoutError, ValueError, AttributeError):
            async with asyncio.timeout(PROBE_SECONDS):
                page = await self._client.models.list()
                return f"it has {', '.join(model.id for model in page.data[:8])}"
        return f"see whether {self._at}.url={masked(self._config.url)} is right: most end in /v1"

    def _words(self, error: openai.OpenAIError) -> str:
        """The endpoint's message, in one line and without the key."""
        text = str(error)
        if isinstance(error, openai.APIStatusError):
            said = error.body.get("message", error.body) if isinstance(error.body, dict) else error.message
            text = f"answers {error.status_code}: {said}"
        elif isinstance(error, openai.APIConnectionError):
            text = f"cannot be reached: {error.__cause__ or error}"
        text = " ".join(text.split())[:300]
        return text.replace(self._key, "***") if self._key else text


def _read(completion: Any) -> str | Failure:
    """The text of a chat completion. One that was cut off has no verdict yet."""
    try:
        choice = completion.choices[0]
        text, finish = choice.message.content or "", choice.finish_reason
    except (AttributeError, IndexError, TypeError):
        return Failure("failed", f"answers no chat completion, but {str(completion)!r:.100}")
    if finish == "length":
        return Failure("failed", f"cut off at max_tokens, before a verdict, in {text[-200:]!r}", unparsed=True)
    return str(text)


def _asked_pause(error: openai.OpenAIError) -> float | None:
    """Seconds that Retry-After asks for (a number, or a date); None where it does not."""
    value = error.response.headers.get("retry-after") if isinstance(error, openai.APIStatusError) else None
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
