"""Options that several network families have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

EmbeddingSize = Annotated[int, Field(ge=1, description="Size of a character's embedding.")]
HiddenSize = Annotated[int, Field(ge=1, description="Units in a recurrent layer.")]
# The upper bounds protect from a checkpoint that would take endlessly to build; other sizes show in its weights.
Layers = Annotated[int, Field(ge=1, le=1_000, description="Stacked recurrent layers.")]
Window = Annotated[int, Field(ge=1, le=10_000, description="Characters per prediction; null: predict at every step.")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="Probability of dropping a unit between recurrent layers.")]
OutputDropout = Annotated[float, Field(ge=0, lt=1, description="Probability of dropping a unit before the head.")]
Identity = Annotated[bool, Field(description="Initialise the hidden-to-hidden matrix as the identity.")]
Activation = Annotated[Literal["tanh", "relu"], Field(description="Activation of the hidden-to-hidden path.")]
