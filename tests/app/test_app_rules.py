"""The rules' options in recipes, and a run of a rule with matrices of its own that is resumed."""

import pytest

from sj_online.app import state
from sj_online.app.build import build
from sj_online.app.cli import main
from sj_online.app.recipe import Named, Recipe
from sj_online.trainer import DECOLLE, OTTT, SLTT, EProp, RateBP

RULES = {
    "rate_bp": (RateBP, {"step_scale": "sum"}),
    "eprop": (EProp, {"feedback": "random", "readout_decay": 0.5}),
    "decolle": (DECOLLE, {"burn_in": 1}),
    "ottt": (OTTT, {"exact": True, "learn_last": 1}),
    "sltt": (SLTT, {"feedback": "random"}),
}


@pytest.mark.parametrize("name", RULES)
def test_a_recipe_names_the_rule_and_its_options(name):
    kind, options = RULES[name]
    recipe = Recipe(num_steps=2)
    recipe.train.rule = Named(name, options)
    rule = build(recipe, rehearsal=True).rule
    assert type(rule) is kind
    values = {"readout_decay": "kappa", "exact": "trace_input"}
    for option, value in options.items():
        got = getattr(rule, values.get(option, option))
        assert got == value or (option == "feedback" and got.drawn)


def test_an_option_of_another_rule_is_named():
    recipe = Recipe(num_steps=2)
    recipe.train.rule = Named("rate_bp", {"update": "step"})
    with pytest.raises(ValueError, match="rate_bp.*update"):
        build(recipe, rehearsal=True)


def test_the_checkpoint_of_a_run_has_the_matrices(tmp_path, tiny):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *tiny, "--train.rule.options.feedback=random"]) == 0
    matrices = state.read(out / "last.ckpt")["rule"]["feedback"]
    assert matrices and all(B.shape[0] == 10 for B in matrices.values())
