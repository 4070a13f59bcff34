"""Synapses that are calls of no synapse's module: ``F.linear(x, other.weight)``, ``x @ W``, attention's projections."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sj_online import contraction
from sj_online.trainer.synapse import Trace


class Functional(TorchFunctionMode):
    """Gives the calls that no synapse's module makes to the traces of their parameters.

    Args:
        net: the network.
        traces: by name of the synapse.
        name_of: the name of the synapse of a parameter.
    """

    def __init__(self, net: nn.Module, traces: dict[str, Trace], name_of: Callable[[str], str]) -> None:
        super().__init__()
        self.weights = contraction.Weights(net)
        self.traces = traces
        self.name_of = name_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in contraction.COMPOSITES:
            with self:
                return contraction.inside(func)(*args, **kwargs)
        if func in contraction.CALLS:
            for data, weight in contraction.operands(func, args, kwargs, self.weights):
                trace = self.traces.get(self.name_of(self.weights.names(weight)[0]))
                if trace is not None:
                    return self._traced(trace, func, args, kwargs, data, weight)
        output = func(*args, **kwargs)
        self.weights.follow(args, kwargs, output)
        return output

    def _traced(self, trace: Trace, func: Any, args: Any, kwargs: Any, data: Tensor, weight: Tensor) -> Tensor:
        product = contraction.product(func, args, kwargs)
        if product is None:  # F.linear or a convolution
            return trace.__torch_function__(func, (), args, kwargs)
        fn = product.fn if data is product.a else lambda a, b: product.fn(b, a)
        output = trace.product(data, weight, fn)
        return output if product.rest is None else product.rest + output
