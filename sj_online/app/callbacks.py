"""What happens around the training of a batch and an epoch: each a class of a few lines, called by ``fabric.call``."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sj_online.app import batches
from sj_online.app.loop import Run, device_name, on_first
from sj_online.app.membrane import Membrane
from sj_online.app.state import not_finite
from sj_online.neuron.leak import is_neuron


class Callback(Protocol):
    """Any of these methods; numbers put into ``run.metrics`` by on_epoch are logged, printed and plotted."""

    def on_network(self, net: nn.Module) -> None:
        """A network has been made, for training or to load a run; what is changed in it is part of the recipe."""

    def on_start(self, run: Run) -> None:
        """The run begins, or goes on."""

    def on_batch(self, run: Run) -> None:
        """A batch has been trained on; ``run.result`` is what the rule says."""

    def on_epoch(self, run: Run) -> None:
        """An epoch has ended; ``run.metrics`` is about it."""

    def on_end(self, run: Run) -> None:
        """The run has ended; ``run.summary`` is about it."""


def usual(own: Sequence[Any] = (), *, minutes: float = 10.0) -> list[Any]:
    """The callbacks of a run, for ``Fabric(callbacks=...)``; a recipe's own may add to what the last ones write.

    What is saved is saved before anything is printed, where a closed terminal may end the run.
    """
    return [Memory(), Membrane(), *own, StopIfDiverged(), Log(), Checkpoint(minutes), Progress()]


class Memory:
    """The peak memory of the run: of the CUDA allocator, or of the process since the run began."""

    def on_start(self, run: Run) -> None:
        """Forget the peaks before the run."""
        if run.parts.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.parts.fabric.device)
        else:
            _forget_peak()

    def on_epoch(self, run: Run) -> None:
        """Add ``peak_memory_bytes``."""
        on_gpu = run.parts.fabric.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(run.parts.fabric.device) if on_gpu else _peak_of_process()
        run.metrics["peak_memory_bytes"] = peak

    def on_end(self, run: Run) -> None:
        """Add the peak to the summary."""
        run.metrics = {}
        self.on_epoch(run)
        run.summary |= run.metrics


class StopIfDiverged:
    """Ends a run whose loss or weights are no longer finite, before anything is written of it."""

    def on_epoch(self, run: Run) -> None:
        """Look at the loss, the weights and the running statistics."""
        epoch, loss = run.metrics["epoch"], run.metrics["loss"]
        advice = f"after epoch {epoch}: training diverged; a lower learning rate may help"
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} {advice}")
        for name in not_finite(run.parts.net.state_dict(), "net"):
            raise ValueError(f"{name} is not finite {advice}")


class Log:
    """Writes the metrics of each epoch to metrics.jsonl and TensorBoard."""

    def on_epoch(self, run: Run) -> None:
        """Write a line."""
        on_first(run.parts.fabric, lambda: run.directory.log(run.metrics))


class Checkpoint:
    """Writes last.ckpt at the start, after each epoch and every so many minutes, and best.ckpt where it is better.

    Args:
        minutes: between two checkpoints inside an epoch; 0 writes one after each batch.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes

    def on_start(self, run: Run) -> None:
        """From now on a run without last.ckpt has lost it."""
        self._save(run)

    def on_batch(self, run: Run) -> None:
        """Write the last checkpoint if it is time; the first rank's clock says so."""
        if run.parts.fabric.broadcast(time.monotonic() - self.saved >= self.seconds):
            self._save(run)

    def on_epoch(self, run: Run) -> None:
        """Write the best checkpoint first, as the last one says that it is there."""
        if run.progress.best_epoch == run.progress.epoch:
            run.save("best")
        self._save(run)

    def _save(self, run: Run) -> None:
        run.save("last")
        self.saved = time.monotonic()


class Progress:
    """Prints a line at the start, for each epoch and at the end; on a terminal also a bar."""

    def on_start(self, run: Run) -> None:
        """Say what is trained, and what is unusual about it."""
        recipe, fabric = run.parts.recipe, run.parts.fabric
        parameters = sum(p.numel() for p in run.parts.net.parameters())
        steps = run.parts.data.steps or recipe.num_steps
        for note in run.notes:
            fabric.print(note, flush=True)
        fabric.print(
            f"{recipe.model.name} on {recipe.dataset.name}: {parameters:,} parameters, {recipe.train.rule.name}, "
            f"T={steps}, {device_name(fabric)} -> {run.directory.path}",
            flush=True,
        )
        self.bar: tqdm | None = None
        self.shows = fabric.is_global_zero and sys.stderr is not None and sys.stderr.isatty()

    def on_batch(self, run: Run) -> None:
        """Move the bar; the loss is asked for only when the bar is drawn, as a GPU waits for it."""
        if not self.shows:
            return
        if self.bar is None:
            done, of = run.progress.batch - 1, run.sampler.batches
            self.bar = tqdm(total=of, initial=done, desc=f"epoch {run.progress.epoch + 1}", leave=False)
        if self.bar.update() and run.result is not None:
            rate = self.bar.format_dict["rate"] or 0.0
            self.bar.set_postfix_str(
                f"loss {float(run.result.loss):.4f}, {rate * run.progress.batch_size:.0f} images/s"
            )

    def on_epoch(self, run: Run) -> None:
        """Print the metrics."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        numbers = {name: value for name, value in run.metrics.items() if name != "epoch" and "/" not in name}
        line = "  ".join(f"{name} {_short(name, value)}" for name, value in numbers.items())
        of = run.progress.epochs
        run.parts.fabric.print(f"epoch {run.metrics['epoch']:>{len(str(of))}}/{of}  {line}", flush=True)

    def on_end(self, run: Run) -> None:
        """Print the test accuracy and what it took."""
        s = run.summary
        run.parts.fabric.print(
            f"test accuracy {s['test_accuracy']:.4f} ({s['test_images']} images) after {s['train_seconds']:.1f} s; "
            f"peak memory {size(s.get('peak_memory_bytes', 0))}; {size(s['saved_bytes'])} saved for backward",
            flush=True,
        )


class FiringRates:
    """Adds the mean firing rate of the neurons, and each layer's, over a batch of validation data."""

    def on_epoch(self, run: Run) -> None:
        """Predict a batch and count the outputs that are not zero."""
        batch = next(iter(run.validation), None) if run.validation is not None else None
        if batch is None:
            return
        with _counted(run.parts.net) as rates, torch.compiler.set_stance("force_eager"):
            batches.predict(run.parts, batch[0])
        means = {name: float(fired / of) for name, (fired, of) in rates.items() if of}
        run.metrics["firing_rate"] = sum(means.values()) / len(means) if means else 0.0
        run.metrics |= {f"firing_rate/{name}": value for name, value in means.items()}


@contextmanager
def _counted(net: nn.Module) -> Iterator[dict[str, tuple[Tensor | float, int]]]:
    """Count the outputs of each neuron layer, by name: how many are not zero, and how many there are."""
    counts: dict[str, tuple[Tensor | float, int]] = {}

    def watch(name: str, module: nn.Module) -> Any:
        counts[name] = (0.0, 0)

        def add(_: nn.Module, __: Any, output: Tensor) -> None:
            fired, of = counts[name]
            counts[name] = fired + output.count_nonzero(), of + output.numel()

        return module.register_forward_hook(add)

    hooks = [watch(name, module) for name, module in net.named_modules() if is_neuron(module)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def size(number: float) -> str:
    """Bytes for people.

    Example:
        >>> size(1_500_000), size(2.5e9)
        ('1.5 MB', '2.50 GB')
    """
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _short(name: str, value: float) -> str:
    return size(value) if name.endswith("_bytes") else f"{value:.4g}"


def _forget_peak() -> None:
    """Set the peak of the resident set to what it is now, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_of_process() -> int:
    """Peak bytes of the resident set."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
