"""The body of a fine-tuning job; see `schemas`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from serving.openai.bounded import Labels, Name, Nothing, RecipeOptions
from serving.openai.schemas import Body, off


class Hyperparameters(Body):
    """OpenAI's hyperparameters; `auto` is the recipe's default."""

    n_epochs: Annotated[int, Field(ge=1, le=50)] | Literal["auto"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Literal["auto"] = "auto"


class Supervised(Body):
    """Settings of supervised fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class PreferenceHyperparameters(Hyperparameters):
    """Those of direct preference optimization."""

    beta: Annotated[float, Field(gt=0, le=2)] | Literal["auto"] = "auto"


class Preference(Body):
    """Settings of direct preference optimization."""

    hyperparameters: PreferenceHyperparameters | None = None


class Method(Body):
    """How to train: from answers or, with dpo, from preferences."""

    type: Literal["supervised", "dpo"] = "supervised"
    supervised: Supervised | None = None
    dpo: Preference | None = None
    reinforcement: Annotated[Any, off()] = None


class JobBody(Body):
    """`POST /v1/fine_tuning/jobs`; `recipe` holds options of `greenllm finetune` by their names."""

    model: Name
    training_file: Name
    validation_file: Name | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Labels | None = None
    integrations: Nothing | None = None
    recipe: RecipeOptions | None = None
