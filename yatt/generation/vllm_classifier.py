"""A reward model with a head of one label, behind the contract of a generator."""

from __future__ import annotations

from yatt.generation.vllm import VllmGenerator


class VllmClassifier(VllmGenerator):
    """Implements `yatt.protocols.Generator` with vLLM's classifier, to be routed, paused, put to sleep and woken like
    any other.

    A request is read, not gone on with. Its answer is one token, 0, whose `rollout_logprobs[0]` is no logprob but the
    head's logit at the last token of the prompt, as it is, without a sigmoid; finish "stop". Sampling settings and the
    seed change nothing.
    """

    classifies = True
