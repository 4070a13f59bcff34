"""Build the network that a file names, which may ask for anything: without memory first, and no more than it holds."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

SPARE_ELEMENTS = 1 << 20
SPARE_MODULES = 1 << 10
"""What a network may have besides what its file counts."""
MODULES_PER_TENSOR = 32


class _TooLarge(ValueError):
    """Not to be taken for an error of the factory's own."""


def build(
    factory: Callable[..., nn.Module],
    kwargs: dict[str, Any],
    tensors: int,
    elements: int,
    check: Callable[[nn.Module], None],
) -> nn.Module:
    """``factory(**kwargs)``, after the same on the meta device has passed ``check``.

    Args:
        factory: of a network.
        kwargs: from a file.
        tensors: how many the file holds.
        elements: of them all together.
        check: raises ValueError if a network does not fit the file.

    Raises:
        ValueError: it does not fit, or asks for many more elements or modules than the file holds.
    """
    try:
        with _limited(tensors, elements), torch.device("meta"):
            without_memory = factory(**kwargs)
    except _TooLarge:
        raise
    except Exception:  # some need memory to be built, and what is wrong is said below
        without_memory = None
    if without_memory is not None:
        check(without_memory)
    with _limited(tensors, elements):
        return factory(**kwargs)


@contextmanager
def _limited(tensors: int, elements: int) -> Iterator[None]:
    """Raise in this thread when what is registered goes far beyond."""
    mine, modules, parameters = threading.get_ident(), 0, 0

    def count_module(*_: Any) -> None:
        nonlocal modules
        modules += threading.get_ident() == mine
        if modules > MODULES_PER_TENSOR * tensors + SPARE_MODULES:
            raise _TooLarge(f"the network that it names has more than {modules - 1} modules, for {tensors} tensors")

    def count_parameter(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal parameters
        if threading.get_ident() == mine and parameter is not None:
            parameters += parameter.numel()
        if parameters > 4 * elements + SPARE_ELEMENTS:  # some replace what they have made, twice
            raise _TooLarge(f"the network that it names has more parameters than the file's {elements}")

    hooks = [
        register_module_module_registration_hook(count_module),
        register_module_parameter_registration_hook(count_parameter),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
