"""The data in flight: one frozen type per stage, from a prompt to the sample that a rank trains on. Numbers come back
as `reports`.

Token columns are numpy arrays (int32 tokens, float32 logprobs, bool masks): they pickle without a copy and need no
torch. Every `[T]` column of a trajectory or sample is aligned with the token itself: `logprobs[t]` is the
log-probability of `tokens[t]` given `tokens[:t]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Finish = Literal["stop", "length", "aborted"]
Status = Literal["ok", "failed", "timed_out"]


class SampleKey(NamedTuple):
    """Where a trajectory stands in the run: the prompt's position in the global order, and which sibling it is. Of a
    conversation, `turn` says which of the policy's turns is asked for, or with which one a row begins."""

    uid: int
    sibling: int
    turn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One image of a prompt, held once by the runtime, encoded. `handle` is what its store gave for the bytes, and
    means something to that runtime only; its receiver opens it there, as uint8 [nbytes].

    Its `patches` (times, rows, columns) are what the vision tower reads of it. It takes the place of `tokens` tokens of
    the sequence, from `start` on: they are known by their place, never by their id, for a policy may sample that id.
    `digest` names the bytes: equal for equal images. `pixels` (rows, columns) is its size in the file, upright, from
    which another model has patches of its own."""

    handle: Any
    nbytes: int
    digest: str = ""
    pixels: tuple[int, int] = (0, 0)
    patches: tuple[int, int, int] = (0, 0, 0)
    start: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row to respond to. `uid` is its position in the global order of the run (never repeats, epochs included).
    `text` is what the policy reads; `question` what the row asks, without the marks of a chat template, for a judge to
    read; `messages` the row as chat messages."""

    uid: int
    text: str
    tokens: np.ndarray
    question: str = ""
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    media: tuple[Media, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one response is drawn. `temperature` 0 is greedy; `top_k` -1 and `top_p` 1 switch truncation off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One response to draw. The same (tokens, params, seed) under the same weights gives the same response."""

    key: SampleKey
    tokens: np.ndarray
    params: SamplingParams
    seed: int
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How an engine is doing: requests it has, those that wait for it included; and, since it started, tokens sampled,
    requests ended, tokens of prompts read (once where siblings share one), decode steps, seconds spent in all, and the
    tokens that its KV cache held (a shared prompt's once) at each of those steps, added up."""

    running: int
    tokens: int
    ended: int = 0
    read: int = 0
    steps: int = 0
    seconds: float = 0.0
    cached: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Response tokens [start, stop) were sampled under policy `version`."""

    start: int
    stop: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An engine's answer to one request: response tokens [R] with the sampler's logprobs [R]. The stop token, where
    there was one, is the last token. A classifier samples nothing: its answer is `logit`."""

    key: SampleKey
    tokens: np.ndarray
    rollout_logprobs: np.ndarray
    spans: tuple[Span, ...]
    finish: Finish
    logit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A judgement. A failure is a status, never a value: `value` is None unless `status` is "ok".
    `parts` are the named values it was made of, and any extra numbers a reward function reported."""

    status: Status
    value: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


Message = dict[str, Any]
"""A chat message: role, content, and where it has them tool_calls and name."""
Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of tools, as chat templates read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool. `id` is its number in the turn, as text."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the policy said in one turn: the message as others see it, and the text as it was sampled. `mistakes` say of
    each call that could not be read what is wrong with it. `finish` is "length" where it was cut off. It `said` so many
    tokens, and `read` so many before."""

    message: Message
    text: str
    calls: tuple[Call, ...] = ()
    mistakes: tuple[str, ...] = ()
    finish: Finish = "stop"
    read: int = 0
    said: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the policy's in a conversation: it sampled tokens [start, stop) of its row. `calls` are the tools it
    called, `failed` those of them that could not be parsed or raised. Its answer took `seconds`, and what came before
    it, outside the engines, `waited`. `cached`: it went on at the engine, and under the weights, by which its row was
    there before. `reward` is what the environment gave for the turn, where it did."""

    start: int
    stop: int
    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    cached: bool = False
    reward: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Tokens [T] of a conversation that were one text to the policy, with what a trajectory has of them. Spans count
    from the first sampled token."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    rollout_logprobs: np.ndarray
    spans: tuple[Span, ...]
    turns: tuple[Turn, ...] = ()
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A prompt and what was answered to it: tokens [T] (prompt, then response), `loss_mask` [T] true on trained tokens,
    `rollout_logprobs` [T] zero outside the response.

    Of a conversation, `turns` are the policy's, `messages` what was said, and what lies between two turns is not
    trained. Where the past was written anew on the way (a chat template drops old thoughts), the conversation went on
    in another row: `earlier` are the rows that it left, in order, which share its score, and `forks` how often that was
    so. `truncated` says which limit ended it: turns, tokens or context."""

    prompt: Prompt
    sibling: int
    tokens: np.ndarray
    loss_mask: np.ndarray
    rollout_logprobs: np.ndarray
    spans: tuple[Span, ...]
    finish: Finish
    text: str
    score: Score | None = None
    turns: tuple[Turn, ...] = ()
    earlier: tuple[Row, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    truncated: str = ""
    forks: int = 0

    @property
    def response_tokens(self) -> int:
        """Tokens that the policy sampled, of all rows."""
        if not self.turns:
            return len(self.tokens) - len(self.prompt.tokens)
        return sum(turn.stop - turn.start for row in self.rows for turn in row.turns)

    @property
    def rows(self) -> tuple[Row, ...]:
        """What is trained on: the rows that were left, and the last one."""
        last = Row(
            tokens=self.tokens,
            loss_mask=self.loss_mask,
            rollout_logprobs=self.rollout_logprobs,
            spans=self.spans,
            turns=self.turns,
            media=self.prompt.media,
        )
        return (*self.earlier, last)

    def judged(self, score: Score) -> Trajectory:
        """The same with a score. Written out: `dataclasses.replace` takes twice as long, per response."""
        return Trajectory(
            prompt=self.prompt,
            sibling=self.sibling,
            tokens=self.tokens,
            loss_mask=self.loss_mask,
            rollout_logprobs=self.rollout_logprobs,
            spans=self.spans,
            finish=self.finish,
            text=self.text,
            score=score,
            turns=self.turns,
            earlier=self.earlier,
            messages=self.messages,
            truncated=self.truncated,
            forks=self.forks,
        )

    @classmethod
    def single_turn(cls, prompt: Prompt, completion: Completion, text: str, score: Score | None = None) -> Trajectory:
        """The trajectory of one prompt and one completion; every response token is trained."""
        p, r = len(prompt.tokens), len(completion.tokens)
        tokens = np.empty(p + r, dtype=np.int32)
        tokens[:p], tokens[p:] = prompt.tokens, completion.tokens
        mask = np.zeros(p + r, dtype=bool)
        mask[p:] = True
        logprobs = np.zeros(p + r, dtype=np.float32)
        logprobs[p:] = completion.rollout_logprobs
        return cls(
            prompt=prompt,
            sibling=completion.key.sibling,
            tokens=tokens,
            loss_mask=mask,
            rollout_logprobs=logprobs,
            spans=completion.spans,
            finish=completion.finish,
            text=text,
            score=score,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The scored siblings of one prompt, in sibling order; those whose score failed are set apart in `failures`.
    `baseline` is the reward of a greedy response, where the algorithm asks for one (ReMax): it is not trained."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    failures: tuple[Trajectory, ...] = ()
    baseline: float | None = None

    @property
    def rewards(self) -> list[float]:
        return [t.score.value for t in self.trajectories if t.score is not None and t.score.value is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sequence that a rank trains on: columns [T]. `advantage` is the trajectory's; 1.0 where the algorithm has none
    (SFT).

    `reward` is the trajectory's, for ranks that work advantages out per token. `reference` is how likely the reference
    finds the trained tokens, where that was worked out beforehand: a sum of log-probabilities. Tokens from `fresh` on
    were sampled under the policy's version that is trained, those before it under earlier ones. `turn_rewards` are
    those parts of the reward that came for a turn, each with the place of the turn's last token.
    """

    key: SampleKey
    tokens: np.ndarray
    loss_mask: np.ndarray
    rollout_logprobs: np.ndarray | None = None
    advantage: float = 1.0
    reward: float = 0.0
    reference: float | None = None
    media: tuple[Media, ...] = ()
    fresh: int = 0
    turn_rewards: tuple[tuple[int, float], ...] = ()

    @property
    def trained_tokens(self) -> int:
        """Tokens that carry loss. The first token of a sequence has no prediction and never counts."""
        return int(np.count_nonzero(self.loss_mask[1:]))

    @property
    def sequences(self) -> tuple[Sample, ...]:
        """Itself; see `Pair`."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two sequences that are of use only together: the chosen and the rejected response to a prompt, or a labelled
    response and one that belongs to another prompt. Each begins with its prompt. The `reward` of both is the margin; of
    a labelled response +1 (desirable) or -1."""

    first: Sample
    second: Sample

    @property
    def key(self) -> SampleKey:
        return self.first.key

    @property
    def trained_tokens(self) -> int:
        return self.first.trained_tokens + self.second.trained_tokens

    @property
    def sequences(self) -> tuple[Sample, ...]:
        return (self.first, self.second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominator:
    """The divisors of one optimizer update's loss, counted over all ranks."""

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The samples that one controller sends to data-parallel rank `rank` for one step.

    `updates[u][m]` are what this controller has of micro-batch m of optimizer update u; every sender names the same
    numbers of updates and micro-batches, some of them empty. `denominators[u]` is global. `senders` are all controllers
    that send this rank a share in this step: those with samples for it; the first also without, where nobody has any
    for this rank, or it none for anyone.
    """

    step: int
    rank: int
    controller: int
    senders: tuple[int, ...]
    updates: tuple[tuple[tuple[Sample | Pair, ...], ...], ...]
    denominators: tuple[Denominator, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies in a flat buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """A complete set of weights under Hugging Face names, ready to be read: a flat buffer or a safetensors folder.
    `checksum` is over the bytes of all tensors in the order of `entries`."""

    version: int
    kind: Literal["flat", "folder"]
    path: str
    checksum: str
    entries: tuple[TensorEntry, ...] = ()
