"""What a rule must know of a network before it trains it: looked at again whenever the network has changed."""

from typing import TYPE_CHECKING, Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from sj_online import check, host, trial
from sj_online.frames import Frames
from sj_online.neuron.leak import is_neuron
from sj_online.prediction import mixing
from sj_online.state import Structure
from sj_online.topology import Found, find
from sj_online.unroll import Unroll, step_mode

if TYPE_CHECKING:
    from sj_online.trainer.base import Rule

BATCHES_BEFORE_SILENCE_IS_SAID = 2


def check_optimizer(optimizer: Any) -> None:
    """Raise where a rule cannot step an optimizer."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer=LBFGS evaluates the loss anew inside its step, which no online rule can: take another"
        )


def check_network(net: nn.Module, horizon: int | None, stride: int | None) -> None:
    """Raise, naming the module, where a rule with this horizon and stride cannot train ``net``."""
    for name, module in net.named_modules():
        if isinstance(module, neuron.OTTTLIFNode):
            raise ValueError(f"{name!r} is an OTTTLIFNode, which returns a list: use LIFNode, the rule keeps the trace")
        if stride == 1 and isinstance(module, host.MIXES_TIME):
            raise _mixes(name, module, 1)
        if horizon != 1 and getattr(module, "temporal_grad", True) is False:
            raise ValueError(
                f"{name!r} has temporal_grad=False, which cuts the graph that this rule needs: "
                "set temporal_grad=True, or use a rule with horizon 1"
            )
    step_mode(net)


def _mixes(name: str, module: nn.Module, k: int) -> ValueError:
    slices = "one step at a time" if k == 1 else f"{k} steps at a time"
    return ValueError(
        f"{name!r} ({type(module).__name__}) mixes the steps of a sequence, but this rule runs {slices}: "
        "use a layer that works step by step (BatchNorm2d), or TimeSlicing or BPTT"
        if k == 1
        else f"{name!r} ({type(module).__name__}) mixes the steps of a sequence, but this rule runs {slices}: use BPTT"
    )


class Inspection:
    """What has been looked at, and of which network.

    Args:
        rule: the rule that asks.
    """

    def __init__(self, rule: "Rule") -> None:
        self.rule = rule
        self.structure: Structure | None = None
        self.found = Found()
        self.batches = 0
        self.said: set[str] = set()

    def look(self, frames: Frames) -> None:
        """Look at the network, unless it is as it was.

        Raises:
            ValueError: the rule cannot train it; names the module and the cure.
        """
        rule, structure = self.rule, Structure(self.rule.net)
        if structure == self.structure:
            return
        check_network(rule.net, rule.horizon, rule.stride)
        if rule.stride is not None and (name := mixing(rule.net, frames, rule.stride)) is not None:
            raise _mixes(name, rule.net.get_submodule(name), rule.stride)
        k = rule.stride or frames.T
        self.found = find(rule.net, frames if rule.looks_at_all_steps else frames.first(2 * k), k)
        if rule.horizon is not None and self.found.of_weights:
            raise ValueError(
                f"the memory {self.found.of_weights[0]!r} is made of weights alone, whose gradient would be lost behind"
                " the first steps of a sequence: do not keep it (invariant=False of DropConnectLinear), or use BPTT"
            )
        self._say_what_is_odd(frames)
        rule.looked(frames)
        self.structure, self.batches = structure, 0

    def _say_what_is_odd(self, frames: Frames) -> None:
        net, found = self.rule.net, self.found
        nodes = {name: module for name, module in net.named_modules() if is_neuron(module)}
        times = 1 if step_mode(net) == "m" else min(self.rule.stride or frames.T, frames.T)
        looped = [name for name in nodes if found.called.get(name, 0) > times]
        if looped:
            self._warn(
                f"{looped[0]!r} runs {found.called[looped[0]] // times} times in one step: a loop over time inside"
                " forward() is one graph, whatever the horizon of the rule; let forward() make one step"
            )
        if found.reset:
            self._warn(f"{next(iter(found.reset))!r} is reset inside forward(): nothing is carried from step to step")
        held = {id(p) for group in self.rule.optimizer.param_groups for p in group["params"]}
        lost = [
            f"{name}.{p}".lstrip(".")
            for name, module in nodes.items()
            for p, value in module.named_parameters()
            if value.requires_grad and id(value) not in held
        ]
        if lost:
            self._warn(
                f"the optimizer does not hold {_some(lost)}, parameters of neurons that then never learn: make it after"
                " the neurons are in the network, or add_param_group"
            )

    def _warn(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            check.warn(text)

    def after(self, x: Tensor, y: Any) -> None:
        """After the first batches, say which neurons neither fire nor let a gradient through."""
        self.batches += 1
        if self.batches != BATCHES_BEFORE_SILENCE_IS_SAID:
            return
        silent = silent_neurons(self.rule.net, Frames(x, num_steps=self.rule.num_steps))
        if silent:
            self._warn(
                f"silent: {_some(silent)} neither fire nor let a gradient through, so that nothing before them learns:"
                " put a batch norm in front of them, or lower their threshold"
            )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + " and others" * (len(names) > 3)


def silent_neurons(net: nn.Module, frames: Frames) -> list[str]:
    """The neurons that stay silent over a batch in training, and through which no gradient passes.

    Args:
        net: a SpikingJelly network; its state, modes and gradients stay as they are.
        frames: an input; at most 8 steps of 32 samples of it are looked at.
    """
    frames = frames.part(min(frames.T, 8), min(frames.N, 32))
    unroll = Unroll(net, frames)
    windows = [range(frames.T)] if unroll.mode == "m" else [range(t, t + 1) for t in range(frames.T)]
    nodes = {name: module for name, module in net.named_modules() if is_neuron(module)}
    return trial.silent(net, nodes, lambda: [unroll(window) for window in windows])
