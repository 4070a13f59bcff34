"""The network of a recipe: new, from another run, or as a run has trained it."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sj_online import sparse
from sj_online.app import named, reader, state
from sj_online.app.recipe import Named, Recipe
from sj_online.app.rundir import RunDirectory
from sj_online.data import Shape

# What a transform of a batch is told.
MIXED = ("classes", "num_classes", "steps")
# What the recipe says of a rule elsewhere.
RULE = ("loss_fn", "num_steps", "backward", "before_step", "per_step_targets")


@dataclass(frozen=True)
class Network:
    """A network, the registered model that it is of, and the arguments that the model was built with."""

    net: nn.Module
    model: str
    options: dict[str, Any]


def check(recipe: Recipe) -> None:
    """Raise unless every name of a recipe is registered and takes its options; nothing is built."""
    train, dataset = recipe.train, recipe.dataset
    named.check("models", recipe.model)
    named.check("data", Named(dataset.name, dataset.options), reserved=("root", "download"))
    named.check("trainers", train.rule, given=2, reserved=RULE)
    named.check("losses", train.loss, given=0 if isinstance(named.entry("losses", train.loss.name), type) else 2)
    named.check("optimizers", train.optimizer, given=1)
    if train.schedule:
        named.check("schedules", train.schedule, given=1, reserved=("epochs",))
    for each in dataset.augment:
        named.check("augmentations", each)
    for each in dataset.batch:
        named.check("augmentations", each, reserved=MIXED)
    for each in train.callbacks:
        named.check("callbacks", each)
    if recipe.start and recipe.start.convert:
        named.check("converters", recipe.start.convert, given=1, reserved=("data",))


def describe(recipe: Recipe) -> Shape:
    """What the data set of a recipe says of itself; no file is touched."""
    dataset = recipe.dataset
    describes = getattr(named.entry("data", dataset.name), "describe", None)
    if describes is None:
        raise ValueError(f"data set {dataset.name} does not describe itself: see sj_online.data.describes")
    return named.run(f"data set {dataset.name}", partial(describes, **dataset.options))


def time_steps(recipe: Recipe, shape: Shape) -> int:
    """T, from the recipe for static data and from the data where they have their own."""
    name = recipe.dataset.name
    if shape.steps is None and recipe.num_steps is None:
        raise ValueError(f"num_steps=null, but data set {name} is static: say for how many steps an image is fed")
    if shape.steps is not None and recipe.num_steps not in (None, shape.steps):
        raise ValueError(f"num_steps={recipe.num_steps}, but data set {name} has its own {shape.steps} steps")
    return shape.steps or recipe.num_steps or 0


def network(recipe: Recipe, shape: Shape) -> Network:
    """A new network as the recipe describes it."""
    made = _new(recipe, shape)
    _changed(recipe, made.net)
    return made


def _new(recipe: Recipe, shape: Shape) -> Network:
    model = recipe.model
    offered = {
        "num_classes": shape.classes,
        "in_channels": shape.shape[0],
        "num_steps": time_steps(recipe, shape),
    }
    options = named.asked_for(named.entry("models", model.name), offered) | model.options
    fits(Named(model.name, options))
    return Network(named.make("models", Named(model.name, options)), model.name, options)


def _changed(recipe: Recipe, net: nn.Module) -> None:
    """Let the callbacks change it that do, such as sparse ones."""
    for each in recipe.train.callbacks:
        if hasattr(named.entry("callbacks", each.name), "on_network"):
            callback = named.make("callbacks", each)
            named.run(f"callback {each.name}", partial(callback.on_network, net))


def fits(model: Named) -> None:
    """Raise if the parameters of a model would not fit into memory; it is built without any."""
    named.check("models", model)
    try:
        with torch.device("meta"):
            net = named.entry("models", model.name)(**model.options)
        needed = sum(tensor.nbytes for tensor in net.state_dict().values())
    except Exception:  # what is wrong is said where it is built; some models cannot be built without memory
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ValueError(f"model {model.name} needs {needed / 1e9:.1f} GB for its weights; there are {there / 1e9:.1f}")


def begun(recipe: Recipe, shape: Shape, data: Tensor | None = None) -> nn.Module:
    """The network of the run to start from, with the weights of its checkpoint, converted if the recipe says so.

    Args:
        recipe: that begins from another run.
        shape: of the data set.
        data: inputs ``[N, ...]`` for a conversion that calibrates; None where the result is loaded from a checkpoint.
    """
    start = recipe.start
    assert start
    directory = RunDirectory(start.run)
    if not directory.config.is_file():
        raise ValueError(f"start.run={start.run} is not the directory of a run: it holds no config.yaml")
    source = reader.load(directory.config)
    check(source)
    net = network(source, shape).net if source.start is None else begun(source, shape)
    load_weights(net, directory, start.checkpoint)
    sparse.bake(net)
    if start.convert:
        call = named.entry("converters", start.convert.name)
        offered = named.asked_for(call, {"num_steps": time_steps(recipe, shape), "data": data}, 1)
        named.run(f"conversion {start.convert.name}", partial(call, net, **offered | start.convert.options))
        _changed(recipe, net)
        return net
    made = _new(recipe, shape).net
    state.check_net(net.state_dict(), made.state_dict(), directory.checkpoint(start.checkpoint))
    made.load_state_dict(net.state_dict())
    _changed(recipe, made)
    return made


def load_weights(net: nn.Module, directory: RunDirectory, which: str) -> None:
    """Fill a network from a checkpoint, which is checked first."""
    path = directory.checkpoint(which)
    weights = state.read(path).get("net")
    state.check_net(weights, net.state_dict(), path)
    net.load_state_dict(cast(dict[str, Any], weights))


def open_run(path: str | Path, checkpoint: str = "last") -> tuple[Recipe, Network]:
    """The recipe and the trained network of a run directory.

    Raises:
        ValueError: no run, or no readable checkpoint.
    """
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise ValueError(f"{directory.path} is not the directory of a run: it holds no config.yaml")
    recipe = reader.load(directory.config)
    check(recipe)
    shape = describe(recipe)
    made = network(recipe, shape)
    if recipe.start and recipe.start.convert:
        made = replace(made, net=begun(recipe, shape))
    load_weights(made.net, directory, checkpoint)
    return recipe, made
