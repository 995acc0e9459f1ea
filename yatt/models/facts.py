"""Sizes of a model and what its passes cost."""

from __future__ import annotations

from dataclasses import dataclass

from yatt.models.vision import VisionFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCost:
    """Cost of a patch of an image, and of each two patches of one image, in those of a token of text."""

    patch: float
    pair: float


NO_IMAGES = ImageCost(patch=0.0, pair=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a model. `embedding_rows` is the weight files', where they were read; the rest is config.json's.
    `layer_weights` are counted where layers are not a Llama's; of them a token passes through the `active` ones."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    max_positions: int
    embedding_rows: int
    head_dim: int
    tied: bool
    architecture: str = ""
    padding: int | None = None
    vision: VisionFacts | None = None
    layer_weights: int | None = None
    active: int | None = None

    @property
    def parameters(self) -> int:
        """Weights of the matrices and embeddings; norms and biases, under a thousandth, are left out."""
        return self.language_parameters + (0 if self.vision is None else self.vision.parameters)

    @property
    def language_parameters(self) -> int:
        """Those of the language model alone."""
        return self._layers + (1 if self.tied else 2) * self.embedding_rows * self.hidden_size

    @property
    def active_parameters(self) -> int:
        """Those of the language model that a token passes through."""
        return self.language_parameters - self._layers + (self._layers if self.active is None else self.active)

    @property
    def _layers(self) -> int:
        if self.layer_weights is not None:
            return self.layer_weights
        attention = 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def quadratic(self) -> float:
        """b / a of a sample's cost (see `balance`): operations per token^2 of attention over those per token of all
        matrices.

        Causal attention multiplies and adds twice per pair of tokens and per dimension of a head (QK^T and AV), over
        half of the T^2 pairs: 2 * layers * heads * head_dim. Matrices do so once per parameter: 2 * parameters, of q
        and o, of grouped k and v, of a gated MLP and of the head over the vocabulary. Backward both take twice as much.
        """
        return self.layers * self.heads * self.head_dim / self._matrices

    @property
    def _matrices(self) -> int:
        """Multiplications of a token with all matrices, in one forward pass."""
        layers = self._layers if self.active is None else self.active
        return layers + self.hidden_size * self.vocab_size

    def image_cost(self, *, trained: bool) -> ImageCost:
        """What images add to a sample's cost; a frozen tower has no backward pass, which takes twice a forward one."""
        if self.vision is None:
            return NO_IMAGES
        part = (1.0 if trained else 1 / 3) / self._matrices
        return ImageCost(patch=self.vision.per_patch * part, pair=self.vision.per_pair * part)
