"""Sparse training as a callback."""

from torch import nn

from sj_online import check, sparse
from sj_online.app.loop import Run


class Sparse:
    """Lets the weights become sparse by STDS, see :func:`sj_online.sparse.sparsify`, and counts how sparse they are.

    The threshold grows over the whole run, so the last checkpoint is the sparse one; the best may be from before.

    Args:
        D: the threshold at the end; 0.05 in LM-H, 0.2 in its authors' code.

    Raises:
        ValueError: D out of range.
    """

    def __init__(self, D: float = 0.05) -> None:
        check.between("D", D, 0, 1e6)
        self.D = D

    def on_network(self, net: nn.Module) -> None:
        """Parametrise the weights."""
        sparse.prepare(net)

    def on_start(self, run: Run) -> None:
        """The threshold of the first batch, or of the one after a checkpoint."""
        total = run.progress.epochs * run.sampler.batches
        self.schedule = sparse.sparsify(run.parts.net, self.D, total)
        self.on_batch(run)

    def on_batch(self, run: Run) -> None:
        """The threshold of the next batch."""
        self.schedule.go_to(run.progress.batches + 1)

    def on_epoch(self, run: Run) -> None:
        """Add ``sparsity``, the share of the weights that are zero, of all and of each layer, and the threshold."""
        counts = sparse.zeros(run.parts.net)
        run.metrics |= {"sparsity": sparse.sparsity(run.parts.net), "sparse_threshold": self.schedule.threshold}
        run.metrics |= {f"sparsity/{name}": none / of for name, (none, of) in counts.items()}

    def on_end(self, run: Run) -> None:
        """Add ``sparsity`` to the summary."""
        run.summary["sparsity"] = sparse.sparsity(run.parts.net)
