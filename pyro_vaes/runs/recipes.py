"""Named sets of defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyro_vaes.runs.options import ConfigError, Values, shown

__all__ = ["DEFAULT_RECIPE", "RECIPES", "Recipe", "recipe_values"]


class Recipe(NamedTuple):
    """A named set of defaults, by flat name, which any flag or file overrides."""

    description: str
    values: Mapping[str, Any]


# The single-level network of Tomczak and Welling, "VAE with a VampPrior" (2018), and its training.
_VAMP_LITERATURE: dict[str, Any] = dict(
    data="mnist",
    likelihood="bernoulli",
    posterior="normal",
    latent_dim=40,
    network="gated",
    hidden_dims=(300, 300),
    input_scaling="none",  # the encoder sees 0 and 1
    epochs=2000,
    patience=50,
    batch_size=100,
    learning_rate=5e-4,
    optimizer="adam",
    augment=0.0,
    ema_decay=0.0,
    warmup_epochs=100.0,
)

RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        "an MLP with ordered levels, a joint mixture prior, a moving average of its weights and "
        "images moved a little",
        {},  # the options' own defaults
    ),
    "digits-conv": Recipe(
        "the same with convolutions, 100 components and a sharpness for each pixel",
        dict(
            network="conv",
            hidden_dims=(256,),
            prior_components=100,
            sharpness=True,
            ema_decay=0.998,
            epochs=500,
        ),
    ),
    "table": Recipe(
        "columns of real numbers: starts at a factor analysis, has one Student's t for the row, "
        "and is compared with the best classical density",
        dict(
            network="skip",
            hidden_dims=(32,),
            latent_dim=8,
            prior_components=12,
            transform="auto",
            start="factors",
            dependent="drop",
            epochs=400,
            patience=60,
            learning_rate=2e-3,
            augment=0.0,
            ema_decay=0.98,
            warmup_epochs=0.0,  # it starts where z is in use
        ),
    ),
    "signal": Recipe(
        "windows of a smooth signal: starts at one multivariate t with a full covariance, has one "
        "Student's t for the window, small steps, and is compared with the best classical density",
        dict(
            network="skip",
            hidden_dims=(32,),
            latent_dim=2,
            prior="standard",
            start="student_t",
            epochs=400,
            patience=60,
            learning_rate=3e-4,  # larger steps spoil a covariance that is known precisely
            augment=0.0,
            ema_decay=0.98,
            warmup_epochs=0.0,
        ),
    ),
    "course": Recipe(
        "what the course's notebook does: MLP 64-256-256, latent 16, categorical, standard prior",
        dict(
            likelihood="categorical",
            prior="standard",
            posterior="normal",
            latent_dim=16,
            network="mlp",
            hidden_dims=(256, 256),
            activation="leaky_relu",
            input_scaling="none",  # the notebook feeds raw levels
            epochs=1000,
            patience=20,
            batch_size=64,
            learning_rate=1e-3,
            optimizer="adamax",
            augment=0.0,
            ema_decay=0.0,
            warmup_epochs=0.0,
        ),
    ),
    "mnist-standard": Recipe(
        "MNIST as the VampPrior literature has it: gated 784-300-300, latent 40, standard prior",
        {**_VAMP_LITERATURE, "prior": "standard"},
    ),
    "mnist-vamp": Recipe(
        "the same with a VampPrior of 500 pseudo-inputs between 0 and 1",
        {
            **_VAMP_LITERATURE,
            "prior": "vamp",
            "prior_components": 500,
            "prior_weights": "uniform",
            "pseudo_input_bounds": True,
        },
    ),
}
DEFAULT_RECIPE = "default"


# --- from recipe, file and flags to a configuration -----------------------------------------------


def recipe_values(name: Any, label: str = "'--recipe'") -> Values:
    """Returns the flat values of a recipe, which are written as their options read them.

    Raises:
        ConfigError: for an unknown name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(
            f"Invalid value for {label}: expected one of {', '.join(RECIPES)}; got {shown(name)}."
        )
    return Values(RECIPES[name].values)
