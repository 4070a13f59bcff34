"""The loss and the accuracies of an epoch, counted on the device."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy


class Statistics(nn.Module):
    """Mean loss, accuracy and, from six classes on, top-5 accuracy; ``state_dict`` holds what has been counted.

    The ranks meet in :meth:`results` and :meth:`together` only.

    Args:
        classes: how many there are.

    Example:
        >>> stats = Statistics(3)
        >>> stats.count(torch.eye(3), torch.tensor([0, 1, 1]), loss=torch.tensor(0.5))
        >>> {name: round(value, 2) for name, value in stats.results().items()}
        {'loss': 0.5, 'accuracy': 0.67}
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        accuracy = partial(MulticlassAccuracy, classes, average="micro", validate_args=False)
        self.loss = MeanMetric(nan_strategy="disable").set_dtype(torch.float64)
        self.accuracies: dict[str, MulticlassAccuracy] = {"accuracy": accuracy()} | (
            {"top5": accuracy(top_k=5)} if classes > 5 else {}
        )
        for name, metric in self.accuracies.items():
            self.add_module(name, metric)
        for each in self._metrics():
            each.persistent(True)

    def _metrics(self) -> list[Metric]:
        return [self.loss, *self.accuracies.values()]

    @torch.no_grad()
    def count(self, output: Tensor, y: Tensor, mask: Sequence[Tensor] = (), loss: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            output: ``[N, classes]``, with per-step targets ``[T, N, classes]``.
            y: labels ``[N]`` or soft targets ``[N, classes]``, with per-step targets a step more.
            mask: with per-step targets one ``[T, N]``, which of them count.
            loss: the mean loss of the batch.
        """
        labels = y.argmax(-1) if y.is_floating_point() else y
        output, labels = (output[mask[0]], labels[mask[0]]) if mask else (output, labels)
        for metric in self.accuracies.values():
            metric.update(output.float().flatten(0, -2), labels.flatten())
        if loss is not None:
            # Weights are ignored by a MeanMetric that lets NaN through; the other kinds wait for the GPU at each batch.
            self.loss.update(loss.double().expand(labels.numel()))

    def results(self) -> dict[str, float]:
        """The values over all that was counted, on all ranks; the loss is NaN if none was."""
        with warnings.catch_warnings(action="ignore"):  # a rank without an item is no mistake
            values = {name: metric.compute() for name, metric in {"loss": self.loss, **self.accuracies}.items()}
        return {name: float(value) for name, value in values.items()}

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in self._metrics():
            metric.reset()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, ``state_dict`` is of what all the ranks have counted."""
        with ExitStack() as stack:
            for metric in self._metrics():
                stack.enter_context(metric.sync_context())
            yield
