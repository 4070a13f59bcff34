"""Readouts of single neurons: fixed random matrices, or modules of one's own."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sj_online import check, host
from sj_online.frames import Frames
from sj_online.install import replaced_forwards
from sj_online.state import looked_at
from sj_online.trainer import parallel
from sj_online.trainer.cut import cut
from sj_online.trainer.signal import source
from sj_online.tree import tensors, tree_map
from sj_online.unroll import Unroll


class Readouts:
    """Of neurons by name: what the loss takes, of their spikes.

    Args:
        net: the network.
        asked: ``'random'``, matrices in U(-1, 1) / sqrt(units) behind every neuron, which give what the network gives;
            or ``{neuron: module}``.
        generator: of the draws; None: one seeded by the place of the neuron.

    Raises:
        ValueError: something else, or a name that is no neuron's.
    """

    def __init__(self, net: nn.Module, asked: str | Mapping[str, nn.Module], generator: torch.Generator | None) -> None:
        self.net = net
        self.generator = generator
        self.modules = dict(asked) if isinstance(asked, Mapping) else None
        if not isinstance(asked, Mapping):
            check.one_of("readouts", asked, ("random",))
        self.matrices: dict[str, Tensor] = {}
        cut(net, print, self.modules)  # raises where the names are wrong

    def look(self, frames: Frames) -> None:
        """Find what the readouts are between, by running a step, and draw those that are not there."""
        units: dict[str, int] = {}
        with looked_at(self.net), torch.no_grad():
            host.reset(self.net)
            sizes = cut(self.net, lambda name, s: units.setdefault(name, s.numel() // frames.N))
            with replaced_forwards(sizes):
                outputs = Unroll(self.net, frames.first(1))(range(1))
        self.like = tree_map(lambda output: output[:1, :1].clone(), outputs)
        outs, some = sum(part.numel() for part in tensors(self.like)), next(tensors(self.like))
        for name, n in units.items() if self.modules is None else ():
            if name not in self.matrices or self.matrices[name].shape != (n, outs):
                drawn = (2 * torch.rand(n, outs, **source(self.net, name, self.generator)) - 1) / n**0.5
                self.matrices[name] = parallel.from_first(drawn).to(some)

    def __call__(self, name: str, s: Tensor) -> Any:
        """What the loss takes, ``[1, N, ...]``, of the spikes of one step, as the neuron gives them."""
        s = s[0] if getattr(self.net.get_submodule(name), "step_mode", "s") == "m" else s
        if self.modules is not None:
            return tree_map(lambda output: output[None], self.modules[name](s))
        flat = s.flatten(1) @ self.matrices[name].to(s)
        parts, place = flat.split([part.numel() for part in tensors(self.like)], 1), count()
        return tree_map(lambda part: parts[next(place)].view(1, len(s), *part.shape[2:]), self.like)

    def state_dict(self) -> dict[str, Any]:
        """The matrices, or the states of the modules."""
        modules = self.modules
        return dict(self.matrices) if modules is None else {name: each.state_dict() for name, each in modules.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        if self.modules is None:
            self.matrices = dict(state)
        for name, each in (self.modules or {}).items():
            each.load_state_dict(state[name])
