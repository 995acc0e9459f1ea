"""How SGLang draws tokens for us: from a request's seed and the token's position alone, so that a request which was
put back, or goes on in another engine, is given the same tokens; with logprobs of the distribution drawn from.

SGLang itself seeds only in a mode that its CPU attention lacks, and leaves top-k and top-p out of its logprobs.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

GREEDY = 1
"""SGLang turns temperature 0 into top-k 1 at temperature 1."""
# Odd constants of splitmix64 (Steele et al. 2014), as signed numbers.
STEP, FIRST, SECOND = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class SeededSampler(Sampler):
    """Takes the place of a model runner's sampler, on every tensor-parallel rank."""

    def forward(
        self,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: Any,
        token_ids_logprobs: Any,
        positions: torch.Tensor,
        *,
        logprob_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One token id [B] for each request, its logprob written into `logits_output`."""
        logits: torch.Tensor = self._preprocess_logits(logits_output.next_token_logits, sampling_info).float()
        greedy = sampling_info.top_ks == GREEDY
        if not sampling_info.is_all_greedy:
            logits = logits / sampling_info.temperatures
            if sampling_info.need_top_k_sampling or sampling_info.need_top_p_sampling:
                top_ks = torch.where(greedy, logits.shape[-1], sampling_info.top_ks)
                logits = truncate(logits, top_ks, sampling_info.top_ps)
        logprobs = logits.log_softmax(dim=-1)
        tokens = logprobs.argmax(dim=-1)
        if not sampling_info.is_all_greedy:
            tokens = torch.where(greedy, tokens, draw(logprobs, uniform(sampling_info.sampling_seed, positions)))
        tokens = tokens.to(torch.int32)
        if return_logprob:
            chosen = self.output_logprob_processor.compute_logprobs(
                logprobs, top_logprobs_nums, token_ids_logprobs, tokens
            )
            chosen.write_output_to(logits_output)
        self._sync_token_ids_across_tp(tokens, sampling_info)
        return tokens


def truncate(logits: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] with -inf outside the `top_ks` [B] largest, and of these outside the smallest set whose probability
    reaches `top_ps` [B]. The largest always stays."""
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(rank >= top_ks[:, None], float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    beyond = (before >= top_ps[:, None]) & (rank > 0) & (top_ps[:, None] < 1)
    return torch.full_like(logits, float("-inf")).scatter(-1, index, ordered.masked_fill(beyond, float("-inf")))


def draw(logprobs: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """The token ids [B] at which the cumulative probability of `logprobs` [B, V] passes `chance` [B] in [0, 1)."""
    edges = logprobs.double().exp().cumsum(dim=-1)
    passed = torch.searchsorted(edges, chance[:, None] * edges[:, -1:], right=True)[:, 0]
    return passed.clamp_(max=logprobs.shape[-1] - 1)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A number in [0, 1) of each pair of seed and position [B], float64: the 53 leading bits of a hash of both."""
    bits = mix(mix(seeds.long()) ^ positions.long())
    return shift_right(bits, 11).double() * 2.0**-53


def mix(x: torch.Tensor) -> torch.Tensor:
    """One step of splitmix64 from the state `x`, modulo 2^64."""
    x = x + STEP
    x = (x ^ shift_right(x, 30)) * FIRST
    x = (x ^ shift_right(x, 27)) * SECOND
    return x ^ shift_right(x, 31)


def shift_right(x: torch.Tensor, by: int) -> torch.Tensor:
    """Shift the bits of signed numbers as if they were unsigned."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _keep_seeds() -> None:
    """Have every batch carry its requests' seeds."""
    without = SamplingBatchInfo.from_schedule_batch.__func__

    def with_seeds(cls: type, batch: Any, vocab_size: int) -> Any:
        info = without(cls, batch, vocab_size)
        seeds = [request.sampling_params.sampling_seed or 0 for request in batch.reqs]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=batch.device)
        return info

    SamplingBatchInfo.from_schedule_batch = classmethod(with_seeds)


_keep_seeds()
