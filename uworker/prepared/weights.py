"""What DECIMER's decoder is made of: arrays, and the few numbers that say how they are used."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dense:
    """`x @ kernel + bias`: kernel f32[in, out], bias f32[out]."""

    kernel: Floats
    bias: Floats


@dataclass(frozen=True)
class Norm:
    """Layer normalisation over the last axis: gamma and beta f32[width]."""

    gamma: Floats
    beta: Floats
    epsilon: float


@dataclass(frozen=True)
class Attention:
    """Multi-head attention; positions are added to queries and keys after their projection."""

    query: Dense
    key: Dense
    value: Dense
    output: Dense


@dataclass(frozen=True)
class Layer:
    """One layer of the decoder, each part followed by the sum with what went in and by a normalisation."""

    itself: Attention
    itself_norm: Norm
    picture: Attention
    picture_norm: Norm
    wider: Dense
    narrower: Dense
    last_norm: Norm


@dataclass(frozen=True)
class Decoder:
    """All of it.

    Attributes:
        embedding: f32[tokens, width]; `embedding_scale` multiplies what is looked up.
        positions: f32[longest or more, width], of the tokens.
        places: f32[places, width], of the encoder's picture.
        last: To f32[tokens], of which a softmax is made.
        start: The token that every answer begins with.
        end: The token that ends one.
        padding: The token that is not looked at by later ones.
        longest: An answer ends after so many tokens, `start` not counted, also without `end`.
    """

    embedding: Floats
    embedding_scale: float
    positions: Floats
    places: Floats
    layers: tuple[Layer, ...]
    last: Dense
    heads: int
    start: int
    end: int
    padding: int
    longest: int

    @property
    def width(self) -> int:
        """How long the vector of a token is."""
        return int(self.embedding.shape[1])
