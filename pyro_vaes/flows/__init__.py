"""Flows: recipes for chains of invertible transforms, built by the part that uses them."""

from pyro_vaes.flows.recipes import (
    LAYERS,
    Flow,
    FlowRecipe,
    iaf,
    maf,
    planar,
    realnvp,
    spline,
    sylvester,
)

__all__ = ["LAYERS", "Flow", "FlowRecipe", "iaf", "maf", "planar", "realnvp", "spline", "sylvester"]
