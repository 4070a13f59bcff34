"""Peak live memory: every tensor that exists at a time, whether saved for backward, computed anew or just passing."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_live_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes at once, of those that are allocated during a call.

    Bytes saved for backward flatter whoever computes activations anew in backward; these do not. On a CPU they are
    counted by torch's profiler, on a GPU by its allocator.

    Args:
        call: something that has run a few times before, so that it allocates what it always does.
        device: where it runs.

    Example:
        >>> x = torch.ones(1000)
        >>> round(peak_live_bytes(lambda: (x + 1) + (x + 2)), -2)  # three sums of 4,000 bytes
        12000
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    changes = [(event["ts"], event["args"]) for event in events if event.get("name") == "[memory]"]
    live: dict[int, int] = {}
    now = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        if change["Bytes"] > 0:
            live[change["Addr"]] = change["Bytes"]
            now += change["Bytes"]
        else:  # what was there before the call does not count, neither while it is there nor when it goes
            now -= live.pop(change["Addr"], 0)
        peak = max(peak, now)
    return peak
