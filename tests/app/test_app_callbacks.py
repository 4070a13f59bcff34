import io
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import small
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import TensorDataset

from sj_online.app import callbacks, state
from sj_online.app.callbacks import Checkpoint, FiringRates, Log, Memory, Progress, StopIfDiverged, usual
from sj_online.app.loop import fit
from sj_online.app.membrane import Membrane


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Own:
    """A callback as a recipe may name one."""

    def __init__(self):
        self.seen = []

    def on_start(self, run):
        self.seen.append("start")

    def on_batch(self, run):
        self.seen.append((run.progress.epoch, run.progress.batch))
        assert run.result.output.shape == (64, 10)

    def on_epoch(self, run):
        self.seen.append("epoch")
        run.metrics["mine"] = 7 * run.metrics["epoch"]

    def on_end(self, run):
        self.seen.append("end")
        run.summary["mine"] = 21


def test_what_a_callback_adds_is_logged_printed_and_plotted(tmp_path, capsys):
    own = Own()
    fit(small.parts(callbacks=usual([own])), tmp_path)
    epochs = [[(epoch, batch) for batch in range(1, 6)] for epoch in (0, 1)]
    assert own.seen == ["start", *epochs[0], "epoch", *epochs[1], "epoch", "end"]
    assert [line["mine"] for line in lines(tmp_path)] == [7, 14]
    assert json.loads((tmp_path / "summary.json").read_text())["mine"] == 21
    assert "mine 14" in capsys.readouterr().out.splitlines()[2]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("mine", "loss", "lr", "train_accuracy", "val_top5", "images_per_second", "peak_memory_bytes"):
        assert [event.value for event in board.Scalars(name)] == pytest.approx([line[name] for line in lines(tmp_path)])
        assert [event.step for event in board.Scalars(name)] == [1, 2]


def test_what_is_printed(tmp_path, capsys):
    fit(small.parts(), tmp_path)
    head, first, second, last = capsys.readouterr().out.splitlines()
    assert head == f"small on digits: 2,474 parameters, sltt, T=2, cpu -> {tmp_path}"
    line = lines(tmp_path)[1]
    assert second.startswith(f"epoch 2/2  lr 0.05  loss {line['loss']:.4g}  train_accuracy ")
    assert f"peak_memory_bytes {line['peak_memory_bytes'] / 1e6:.1f} MB" in second or "GB" in second
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert last.startswith(f"test accuracy {summary['test_accuracy']:.4f} (101 images) after ")
    assert last.endswith(f"; {summary['saved_bytes'] / 1e6:.1f} MB saved for backward")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_only(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(callbacks.tqdm, "update", lambda bar, update=callbacks.tqdm.update: update(bar) or True)
    fit(small.parts(), tmp_path)
    text = sys.stderr.getvalue()
    assert ("epoch 2" in text) == terminal
    assert ("5/5" in text and "images/s" in text and "loss 2." in text) == terminal


def test_the_bar_of_a_resumed_epoch_begins_where_it_was(tmp_path, monkeypatch):
    class Stop:
        def on_batch(self, run):
            if run.progress.batches == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small.parts(small.recipe(epochs=1), callbacks=[*usual(minutes=0.0), Stop()]), tmp_path)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(callbacks.tqdm, "update", lambda bar, update=callbacks.tqdm.update: update(bar) or True)
    fit(small.parts(small.recipe(epochs=1)), tmp_path, resume=True)
    assert "3/5" in sys.stderr.getvalue() and "5/5" in sys.stderr.getvalue()
    assert "1/5" not in sys.stderr.getvalue()


def test_stderr_may_be_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    fit(small.parts(), tmp_path)
    assert len(lines(tmp_path)) == 2


MEMORY = 400_000_000
FORK = multiprocessing.get_context("fork")


class Fill:
    def on_batch(self, run):
        torch.ones(MEMORY // 4)


def grown(out, when, answer):
    """How much the peak of a run is above what the process held when it began."""
    recipe = small.recipe(epochs=1, batch_size=320)
    fit(small.parts(recipe, callbacks=[]), out / "warm")
    held = 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    if when == "before":
        torch.ones(MEMORY // 4)
    summary = fit(small.parts(recipe, callbacks=[Memory(), *([Fill()] if when == "within" else [])]), out / "run")
    answer.put(summary["peak_memory_bytes"] - held)


@pytest.mark.parametrize("when", ["before", "within"])
def test_the_peak_is_of_the_run(tmp_path, when):
    """Not of the process's past; in a process of its own, as the peak of this one is what the others left."""
    answer = FORK.Queue()
    FORK.Process(target=grown, args=(tmp_path, when, answer)).start()
    peak = answer.get(timeout=60)
    assert (peak > 0.9 * MEMORY) == (when == "within")
    assert peak < 1.5 * MEMORY


def test_without_linux_the_peak_is_the_processes(monkeypatch):
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: real(path).replace("VmHWM", "none"))
    monkeypatch.setattr(Path, "write_text", lambda path, text: (_ for _ in ()).throw(PermissionError))
    callbacks._forget_peak()
    peak = callbacks.resource.getrusage(callbacks.resource.RUSAGE_SELF).ru_maxrss * 1024
    assert callbacks._peak_of_process() == peak


def test_saved_bytes_do_not_grow_with_T_online(tmp_path):
    def saved(T):
        recipe = replace(small.recipe(epochs=1), num_steps=T)
        return fit(small.parts(recipe, net=lambda: small.network(norm=False, dropout=0.0)), tmp_path / str(T))[
            "saved_bytes"
        ]

    assert saved(2) == saved(6) > 0


def test_a_nan_image_ends_the_run_before_it_is_saved(tmp_path):
    """A membrane that is NaN does not fire: the output stays finite, the loss that is reported does not."""
    data = small.digits()

    class Nan(torch.utils.data.Dataset):
        def __len__(self):
            return 320

        def __getitem__(self, place):
            x, y = data.train[place]
            return (x * float("nan"), y) if place == (2, 5) else (x, y)

    watched = []

    class Watch:
        def on_epoch(self, run):
            watched.append(run.metrics["loss"])

    parts = small.parts(data=replace(data, train=Nan()), callbacks=[Watch(), *usual(minutes=10.0)])
    with pytest.raises(ValueError, match="the loss is nan after epoch 2: training diverged; a lower"):
        fit(parts, tmp_path)
    assert math.isfinite(watched[0]) and math.isnan(watched[1])
    assert len(lines(tmp_path)) == 1
    for which in ("last", "best"):
        assert state.read(tmp_path / f"{which}.ckpt")["progress"]["epoch"] == 1
    assert not (tmp_path / "error.log").exists()


def test_a_buffer_that_is_nan_ends_the_run_too(tmp_path):
    class Break:
        def on_epoch(self, run):
            next(run.parts.net.buffers()).fill_(float("nan"))

    with pytest.raises(
        ValueError, match=r"net\.\d\.running_mean is not finite after epoch 1: training diverged; a lower"
    ):
        fit(small.parts(callbacks=[Break(), *usual(minutes=10.0)]), tmp_path)
    assert not (tmp_path / "best.ckpt").exists()


def test_a_nan_is_not_saved_within_an_epoch(tmp_path):
    class Spoil:
        def on_batch(self, run):
            if run.progress.batches == 7:
                run.parts.net[1].weight.data[0, 0] = float("inf")

    with pytest.raises(ValueError, match="net.1.weight is not finite: training diverged"):
        fit(small.parts(callbacks=[Spoil(), *usual(minutes=0.0)]), tmp_path)
    assert state.read(tmp_path / "last.ckpt")["progress"]["batches"] == 6


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    class Spoil:
        def on_epoch(self, run):
            run.metrics["loss"] = float("nan")

    with pytest.raises(ValueError, match="the loss is nan after epoch 1: training diverged"):
        fit(small.parts(callbacks=usual([Spoil()])), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("minutes", "saved"), [(0.0, list(range(11))), (1.0, [0, 2, 4, 5, 7, 9, 10]), (9.0, [0, 5, 10])]
)
def test_checkpoints_by_the_clock(tmp_path, monkeypatch, minutes, saved):
    """A batch takes 30 s here; a checkpoint is written at the start and after each epoch whatever the clock says."""
    seen, now = [], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Clock:
        def on_batch(self, run):
            now[0] += 30.0

    write = state.write

    def watch(path, what):
        write(path, what)
        if path.name == "last.ckpt":
            seen.append(what["progress"]["batches"])

    monkeypatch.setattr(state, "write", watch)
    fit(small.parts(callbacks=[Clock(), Checkpoint(minutes)]), tmp_path)
    assert sorted(set(seen)) == saved


def test_best_is_chosen_on_validation_data_and_is_there_before_last_says_so(tmp_path, monkeypatch):
    accuracies, written = iter([0.4, 0.9, 0.5, 0.9]), []

    monkeypatch.setattr("sj_online.app.loop.evaluate", lambda parts, data: {"accuracy": next(accuracies, 0.3)})
    write = state.write
    monkeypatch.setattr(
        state, "write", lambda path, what: (written.append((path.stem, what["progress"]["epoch"])), write(path, what))
    )
    summary = fit(small.parts(small.recipe(epochs=4), callbacks=[Log(), Checkpoint(9.0)]), tmp_path)
    assert (summary["best_epoch"], summary["best_val_accuracy"], summary["test_accuracy"]) == (2, 0.9, 0.3)
    assert written == [("last", 0), ("best", 1), ("last", 1), ("best", 2), ("last", 2), ("last", 3), ("last", 4)]


def test_firing_rates(tmp_path):
    parts = small.parts(small.recipe(epochs=1), callbacks=[FiringRates(), Log()])
    fit(parts, tmp_path)
    counts = []
    hook = parts.net[3].register_forward_hook(lambda module, args, output: counts.append(output.mean()))
    x, _ = parts.data.validation[:64]
    parts.rule.predict(x)
    hook.remove()
    rate = float(torch.stack(counts).mean())
    assert 0 < rate < 1
    assert lines(tmp_path)[0]["firing_rate"] == lines(tmp_path)[0]["firing_rate/3"] == pytest.approx(rate)
    assert not parts.net[3]._forward_hooks


def test_without_validation_data_there_are_no_firing_rates(tmp_path):
    data = replace(small.digits(), validation=TensorDataset(torch.empty(0, 1, 8, 8), torch.empty(0)))
    fit(small.parts(small.recipe(epochs=1), data=data, callbacks=[FiringRates(), Log()]), tmp_path)
    assert "firing_rate" not in lines(tmp_path)[0]


def test_the_usual_callbacks():
    own = Own()
    kinds = [type(each) for each in usual([own], minutes=3.0)]
    assert kinds == [Memory, Membrane, Own, StopIfDiverged, Log, Checkpoint, Progress]
    assert usual(minutes=3.0)[4].seconds == 180
    assert usual()[4].seconds == 600


class Tell:
    """Tells the processes of a run within its second epoch, and waits if it is to."""

    def __init__(self, waits):
        self.waits = waits

    def on_batch(self, run):
        if run.progress.batches == 7:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            print(os.getpid(), *children, flush=True)
            time.sleep(60 * self.waits)


def train_aside(out, waits, stdout, stderr, readers):
    """What a command does with the errors of a run; in a session of its own, as a terminal gives."""
    os.setsid()
    for reader in readers:
        reader.close()
    for number, handle in ((1, stdout), (2, stderr)):
        os.dup2(handle.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w") for number in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        fit(small.parts(small.recipe(workers=2), callbacks=[*usual(minutes=0.0), Tell(waits)]), out)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
    except (BrokenPipeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


def started(out, waits):
    """A run in another process, and the two ends that it writes to."""
    (stdout, to_out), (stderr, to_err) = FORK.Pipe(duplex=False), FORK.Pipe(duplex=False)
    process = FORK.Process(target=train_aside, args=(out, waits, to_out, to_err, (stdout, stderr)))
    process.start()
    to_out.close(), to_err.close()
    out, err = (open(os.dup(each.fileno())) for each in (stdout, stderr))  # noqa: SIM115
    stdout.close(), stderr.close()
    assert out.readline().startswith("small on digits")
    return process, out, err


def pids(out):
    return next(list(map(int, line.split())) for line in out if line.split()[0].isdigit())


def gone(each):
    """Whether a process is gone, or will be in a moment."""
    for _ in range(100):
        if not Path(f"/proc/{each}").exists() or ") Z" in Path(f"/proc/{each}/stat").read_text():
            return True
        time.sleep(0.1)
    return False


def resumed(out):
    """The run goes on and is the one that was not interrupted."""
    fit(small.parts(), out, resume=True)
    whole = out.with_name("whole")
    fit(small.parts(), whole)
    ours, theirs = (state.read(each / "last.ckpt")["net"] for each in (out, whole))
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_an_interrupt_stops_a_run_with_workers_once_and_in_one_line(tmp_path):
    process, out, err = started(tmp_path / "run", waits=True)
    every = pids(out)
    assert len(every) == 5  # two for training, two for validation
    os.killpg(process.pid, signal.SIGINT)
    assert err.read() == "interrupted\n"
    process.join(60)
    assert all(map(gone, every))
    assert resumed(tmp_path / "run")


def test_a_killed_worker_is_one_line(tmp_path):
    process, out, err = started(tmp_path / "run", waits=True)
    os.kill(pids(out)[1], signal.SIGKILL)
    line = err.read()
    process.join(60)
    assert line.count("\n") == 1
    assert line.startswith("ValueError: RuntimeError: DataLoader worker (pid")
    assert line.endswith("error.log)\n")
    assert resumed(tmp_path / "run")


def test_a_closed_stdout_loses_no_epoch(tmp_path):
    process, out, err = started(tmp_path / "run", waits=False)
    out.close()
    assert err.read().startswith("BrokenPipeError")
    process.join(60)
    assert state.read(tmp_path / "run" / "last.ckpt")["progress"]["epoch"] >= 1
    assert resumed(tmp_path / "run")


@pytest.mark.slow
def test_a_compiled_network_trains_and_fires_as_another(tmp_path):
    """Hooks that come after the compilation are ignored by compiled code."""
    for name in ("eager", "compiled"):
        parts = small.parts(small.recipe(epochs=1), callbacks=[FiringRates(), *usual(minutes=9.0)])
        if name == "compiled":
            parts.net.compile(backend="aot_eager")
        fit(parts, tmp_path / name)
    eager, compiled = (lines(tmp_path / name)[0] for name in ("eager", "compiled"))
    assert compiled["firing_rate"] == pytest.approx(eager["firing_rate"], abs=0.02)
    assert compiled["firing_rate"] > 0.02
    assert compiled["loss"] == pytest.approx(eager["loss"], abs=0.02)
    state_of = [state.read(tmp_path / name / "last.ckpt")["net"].keys() for name in ("eager", "compiled")]
    assert state_of[0] == state_of[1]
