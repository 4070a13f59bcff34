"""What is measured of a network that a recipe or a run describes: gradients, cost, activity, inference."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from sj_online import registry
from sj_online.analysis import neuron_operations
from sj_online.analysis.gradients import Factory, Similarity, similarity
from sj_online.analysis.live import peak_live_bytes
from sj_online.analysis.rivals import multi_step_bptt
from sj_online.analysis.timing import quartiles, rounds_of
from sj_online.analysis.training_cost import Made, TrainingCost, training_cost
from sj_online.app import batches, named
from sj_online.app.build import build
from sj_online.app.parts import Parts
from sj_online.app.recipe import Named, Recipe
from sj_online.app.rehearse import samples
from sj_online.app.rules import compared
from sj_online.prediction import predict

Say = Callable[[str], None]
RIVALS: dict[str, dict[str, Any]] = {
    "host BPTT": {},
    "memopt": {"memopt_level": 1},
    "checkpointing": {"checkpointed": True},
}


def cost_of_rules(
    recipe: Recipe, names: Sequence[str], steps: Sequence[int], *, batch: int, rounds: int, say: Say
) -> tuple[list[TrainingCost], list[str]]:
    """Time, saved bytes and peak live memory of each rule on a recipe's network, and of the rivals; what is left out.

    The first rule comes twice where time is measured: what the ratio of a thing to itself is.
    """
    rules, left_out = compared(names)
    first = next(iter(rules))
    if rounds:
        rules = {first: rules[first], f"{first} (again)": rules[first]} | rules
    makers: dict[str, Callable[[int], Made]] = {}
    for label, maker in itertools.chain(
        ((label, partial(_trained, recipe, rule, batch)) for label, rule in rules.items()),
        ((label, partial(_rival, recipe, options, batch)) for label, options in RIVALS.items()),
    ):
        try:
            for T in steps:
                maker(T).step()
            makers[label] = maker
        except (ValueError, RuntimeError) as error:
            left_out.append(f"{label} is left out: {' '.join(str(error).split())[:200]}")
    return training_cost(makers, steps, rounds=rounds, progress=say), left_out


def of_steps(recipe: Recipe, T: int, rule: Named | None = None) -> Parts:
    """A recipe's parts without its data, with T steps of a static input and another rule.

    Raises:
        ValueError: data that have their own number of steps.
    """
    rule = rule or Named("bptt")
    train = replace(recipe.train, rule=rule, callbacks=[])
    parts = build(replace(recipe, num_steps=T, train=train, start=None), rehearsal=True)
    parts.net.train()
    return parts


def _trained(recipe: Recipe, rule: Named, batch: int, T: int) -> Made:
    parts = of_steps(recipe, T, rule)
    given = samples(parts, batch)
    return Made(lambda: batches.train_batch(parts, given), parts.net, given[0])


def _rival(recipe: Recipe, options: dict[str, Any], batch: int, T: int) -> Made:
    parts = of_steps(recipe, T)
    x, y, *mask = samples(parts, batch)
    if mask:
        raise ValueError("it is written for one label a sequence, and these data have one a step")
    net, step = multi_step_bptt(parts.net, x, y, T if parts.data.steps is None else None, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def train() -> None:
        optimizer.zero_grad()
        step()
        optimizer.step()

    return Made(train, net, x)


def gradients_of_rules(
    parts: Parts, data: list[tuple[Tensor, ...]], names: Sequence[str], *, say: Say
) -> tuple[list[Similarity], list[str]]:
    """Every rule's gradient beside BPTT's on a network as it is, and what is left out.

    Args:
        parts: the network and its recipe.
        data: batches.
        names: of rules; none: all.
        say: told what is being measured.
    """
    rules, left_out = compared(names)
    recipe, net = parts.recipe, parts.net
    loss = named.make("losses", recipe.train.loss)
    common = {"loss_fn": loss, "per_step_targets": parts.data.per_step_targets}
    steps = recipe.num_steps if parts.data.steps is None else None
    reference = partial(registry.get("trainers", "bptt"), **common)
    factories: dict[str, Factory] = {}
    modes = {module: module.training for module in net.modules()}
    net.train()
    found: list[Similarity] = []
    try:
        for label, rule in rules.items():
            say(f"{label}: gradient")
            factories = {label: partial(registry.get("trainers", rule.name), **rule.options, **common)}
            try:
                rows = similarity(net, data, factories, reference=reference, num_steps=steps)
            except (ValueError, RuntimeError) as error:
                left_out.append(f"{label} is left out: {' '.join(str(error).split())[:200]}")
                continue
            found += [row for row in rows if row.rule == label or not any(row.rule == other.rule for other in found)]
    finally:
        for module, training in modes.items():
            module.training = training
    return found, left_out


def first_batches(parts: Parts, dataset: Any, count: int, size: int) -> Iterator[tuple[Tensor, ...]]:
    """The first batches of a data set, prepared as the recipe asks."""
    for place in range(count):
        ids = range(place * size, min((place + 1) * size, len(dataset)))
        if not ids:
            return
        x, *rest = parts.fabric.to_device(parts.data.collate([dataset[i] for i in ids]))
        yield batches.prepared(parts, x), *rest


def cost_of_inference(
    recipe: Recipe, steps: Sequence[int], sizes: Sequence[int], *, rounds: int, say: Say
) -> list[tuple[str, int, int, float, float, float, float, int, int]]:
    """Inference step by step and in one pass: way, T, batch, ms, its quartiles, images/s, peak bytes, NOPs an image."""
    rows = []
    for T, size in itertools.product(steps, sizes):
        say(f"inference, T={T}, batch {size}")
        parts = of_steps(recipe, T)
        x = samples(parts, size)[0]
        net, static = parts.net.eval(), parts.data.steps is None
        operations = neuron_operations(net, x if static else x[0]) * T // size
        frames = x.expand(T, *x.shape) if static else x
        ways: dict[str, Callable[[], object]] = {
            "step by step": partial(predict, net, frames),
            "one pass": partial(_one_pass, net, frames),
        }
        seconds = rounds_of(ways, max(1, rounds))
        for way, call in ways.items():
            low, high = quartiles(seconds[way])
            least = min(seconds[way])
            call()
            peak = peak_live_bytes(call, x.device)
            rows.append((way, T, size, 1e3 * least, 1e3 * low, 1e3 * high, size / least, peak, operations))
    return rows


@torch.no_grad()
def _one_pass(net: nn.Module, frames: Tensor) -> Any:
    modes = {module: module.step_mode for module in net.modules() if hasattr(module, "step_mode")}
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    try:
        return net(frames)
    finally:
        functional.reset_net(net)
        for module, mode in modes.items():
            module.step_mode = mode
