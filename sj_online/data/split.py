"""The validation part of the training data."""

from collections.abc import Sequence

import torch


def stratified(labels: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """Indices to train and to validate: the same fraction of every class, drawn once and always the same.

    Args:
        labels: of all items.
        fraction: to validate, from 0 (none) to below 1.

    Raises:
        ValueError: a fraction out of range.

    Example:
        >>> train, validation = stratified([0] * 10 + [1] * 20, 0.1)
        >>> len(train), sorted(index // 10 for index in validation)
        (27, [0, 1, 2])
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation={fraction} must be from 0 to below 1")
    generator = torch.Generator().manual_seed(0)
    tensor = torch.as_tensor(labels)
    chosen = torch.zeros(len(tensor), dtype=torch.bool)
    for label in tensor.unique():
        members = (tensor == label).nonzero().flatten()
        count = round(fraction * len(members))
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~chosen).nonzero().flatten().tolist(), chosen.nonzero().flatten().tolist()
