"""Plans: which format each matrix of a model is stored in, and the exact bytes of the whole.

    plan_for(model, "Q4_K_M")            # a recipe: the rule by which llama.cpp mixes formats
    plan_for(model, formats.get("Q2_K")) # one format for every matrix
    plan_for(model, {"model.layers.0.mlp.down_proj.weight": "Q8_0"})

Three names, Q8_0, Q6_K and Q2_K, are both a format and one of llama.cpp's recipes. For a whole model the
name means the recipe, as it does in file names; the format itself, from `formats.get`, means just that format.
"""

from workbench.planning.exl2 import exl2_bits
from workbench.planning.mix import Plan, left_as_is, of_plan, planned, touched
from workbench.planning.recipes import ATTENTION_AT_Q8, RECIPES, Recipe
from workbench.planning.spec import Spec, fallbacks, plan_for

__all__ = [
    "ATTENTION_AT_Q8",
    "RECIPES",
    "Plan",
    "Recipe",
    "Spec",
    "exl2_bits",
    "fallbacks",
    "left_as_is",
    "of_plan",
    "plan_for",
    "planned",
    "touched",
]
