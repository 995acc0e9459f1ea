"""The settings of how responses are drawn and scored: the engine, rewards, and what the policy talks to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from yatt.config.section import Name, Section

EngineName = Literal["vllm", "sglang"]


class RolloutConfig(Section):
    engine: EngineName = Field("vllm", description="What generates.")
    n: int = Field(8, ge=1, description="Responses per prompt.")
    max_tokens: int = Field(1024, ge=1, description="Longest response.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens with this much probability together."
    )
    top_k: int = Field(-1, ge=-1, description="-1 keeps every token.")
    stop: list[str] = Field(default_factory=list, description="Strings that end a response.")
    filter: str = Field("none", description="Groups dropped: none, all_equal, band, or FILE.py:NAME (rewards -> bool).")
    reward_band: tuple[float, float] | None = Field(
        None, strict=False, description="Lowest and highest mean reward of a group that is kept (filter band)."
    )
    refill: Literal["estimate", "one"] = Field(
        "estimate", description="Prompts drawn for missing groups: by the acceptance rate, or one per dropped group."
    )
    oversample: float = Field(1.0, ge=1, description="Prompts in flight over those needed; the first to end are used.")
    max_refills: int = Field(2, ge=0, description="Waves: at most this many times the quota is drawn beyond it.")
    max_staleness: int = Field(
        0, ge=0, description="Oldest groups trained, in updates: carried over, or (disaggregated) drawn ahead."
    )
    engine_gap: Literal["stop", "warn"] = Field(
        "stop", description="What the first step does where engine and trainer differ by more than rounding."
    )
    sleep: bool = Field(True, description="Free the engines' KV cache while training.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="The engine's own options, passed through.")


def truncates(rollout: RolloutConfig) -> bool:
    """Whether tokens are sampled from the likeliest ones only."""
    return rollout.top_p < 1 or rollout.top_k > 0


class RewardFunctionConfig(Section):
    function: str = Field(..., description="FILE.py:NAME, package.module:NAME, or a built-in name.")
    weight: float = Field(1.0, description="Weight in the sum.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Extra keyword arguments.")


class JudgeConfig(Section):
    """A judge: a model folder served by engines of the run (`path`), or a chat endpoint elsewhere (`url`, `model`)."""

    path: str | None = Field(
        None, description="Hugging Face folder of a judge that this run serves, or its name on the Hub."
    )
    kind: Literal["generative", "classifier"] = Field(
        "generative", description="Whether the folder's model writes a verdict or is a sequence classifier."
    )
    engine: EngineName | None = Field(None, description="What runs it where it is served; rollout.engine when unset.")
    context_length: int | None = Field(None, ge=8, description="Most tokens a served judge reads and writes together.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Options of its engines, passed through.")
    url: str | None = Field(None, pattern="^https?://", description="Address of the endpoint; most end in /v1.")
    model: str | None = Field(None, description="The judge's name at the endpoint.")
    key_env: str | None = Field(None, description="Environment variable with the key, on every controller's machine.")
    template: str | None = Field(None, description="What it reads, with {question}, {response}, {answer} filled in.")
    parser: str | None = Field(
        None,
        description="verdict:WORD=NUMBER,..., number, number:LOW..HIGH, json:FIELD, or FILE.py:NAME (text -> number).",
    )
    weight: float = Field(1.0, description="Weight in the sum of all rewards.")
    judgements: int = Field(1, ge=1, description="Judgements of one response, averaged.")
    retries: int = Field(2, ge=0, description="How often an answer without a verdict is asked for again.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature of the judge.")
    max_tokens: int = Field(1024, ge=1, description="Longest answer of the judge; one cut off has no verdict.")
    concurrency: int = Field(32, ge=1, description="Requests under way per controller.")
    timeout: float = Field(60.0, gt=0, description="Seconds for one answer, with the pauses of a busy endpoint.")


class RewardConfig(Section):
    function: str | None = Field(None, description="The only rule: FILE.py:NAME, package.module:NAME or a built-in.")
    functions: dict[Name, RewardFunctionConfig] = Field(
        default_factory=dict, description="Several, named and weighted."
    )
    models: dict[Name, JudgeConfig] = Field(default_factory=dict, description="Judges, named and weighted.")
    timeout: float = Field(10.0, gt=0, description="Seconds for one trajectory before its worker is killed.")
    workers: int = Field(1, ge=1, description="Worker processes per controller.")

    @property
    def served(self) -> dict[str, JudgeConfig]:
        """The judges that the run serves itself."""
        return {name: judge for name, judge in self.models.items() if judge.path is not None}


class EnvironmentConfig(Section):
    """What the policy talks to, in several turns. `environment: FILE.py:NAME` is short for its `function`."""

    function: str | None = Field(
        None,
        description="FILE.py:NAME, package.module:NAME or a built-in: a class whose public methods are the policy's "
        "tools, or an async function that plays a conversation; one turn each when unset.",
    )
    command: str | None = Field(
        None,
        description="A program started for each conversation instead, in any language: it finds the policy at "
        "OPENAI_BASE_URL under OPENAI_API_KEY, and its row on its standard input.",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="Its keyword arguments, passed through.")
    calls: str = Field("auto", description="Format of tool calls: hermes, llama3, mistral, glm; auto: the template's.")
    max_turns: int = Field(16, ge=1, description="Most turns of the policy's in a conversation.")
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens that the policy samples in all turns together; no limit when unset."
    )
    timeout: float = Field(60.0, gt=0, description="Seconds for whatever is done between two turns.")
    workers: int = Field(1, ge=1, description="Worker processes per controller.")
    retries: int = Field(1, ge=0, description="How often a conversation that failed is played anew.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"function": given} if isinstance(given, str) else given

    @property
    def played(self) -> bool:
        """Whether there is an environment at all."""
        return self.function is not None or self.command is not None
