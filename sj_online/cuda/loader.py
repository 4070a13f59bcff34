"""Kernels in ``.cu`` files, compiled by CuPy on first use and launched on torch's device, stream and memory.

CuPy only compiles and launches: memory is torch's, and so is the choice of the device (CuPy's own device context does
not restore torch's). After the first launch nothing here waits for the device or copies to it, so that a CUDA graph can
capture it.
"""

import functools
import importlib.util
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

SCALARS = {torch.float32: "float", torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
"""The dtypes that kernels read and write, and their names in ``common.cuh``."""

OPTIONS = ("-std=c++17", "--fmad=false", "-default-device")
"""No fused multiply-add: it would change float spikes by an ulp against the reference. Lambdas are device functions."""

LANES = 4
"""Neighbouring neurons that one thread takes where memory allows."""

THREADS = 256
BLOCKS_PER_SM = 8
SHARED_BYTES = 32 * 1024
MAX_SLOTS = SHARED_BYTES // (4 * 32)
"""Numbers that the smallest block, of 32 threads, can sum."""

_CUPY = importlib.util.find_spec("cupy") is not None
_lock = threading.Lock()
_kernels: dict[tuple[int, Path, str], Any] = {}


def reasons(x: Tensor, slots: int = 0) -> list[str]:
    """Why the kernels cannot run on ``x``, every reason; empty if they can.

    Args:
        x: the input.
        slots: the numbers whose gradients a backward pass sums over the neurons.

    Example:
        >>> "x is on cpu, not on a CUDA device" in reasons(torch.zeros(2))
        True
    """
    found = []
    if not _CUPY:
        found.append("CuPy is not installed (pip install 'sj-online[cuda13]')")
    if x.device.type != "cuda":
        found.append(f"x is on {x.device.type}, not on a CUDA device")
        if not torch.cuda.is_available():
            found.append("torch finds no CUDA device")
    if x.dtype not in SCALARS:
        found.append(f"x has dtype {x.dtype}, not one of {', '.join(map(str, SCALARS))}")
    if slots > MAX_SLOTS:
        found.append(f"{slots} per-step parameters learn, and {MAX_SLOTS} fit")
    return found


def source(path: Path) -> str:
    """The text of a kernel file with ``common.cuh`` in it: CuPy's cache of compiled kernels does not see includes."""
    common = Path(__file__).with_name("common.cuh").read_text()
    return path.read_text().replace('#include "common.cuh"', common)


class Grid(NamedTuple):
    """Blocks of a launch, threads of a block, bytes of shared memory of a block."""

    blocks: int
    threads: int
    shared: int = 0


def grid(neurons: int) -> Grid:
    """One thread per ``LANES`` neurons."""
    return Grid(min(-(-neurons // (LANES * THREADS)), 2**31 - 1), THREADS)


def reducing_grid(neurons: int, slots: int, device: torch.device) -> Grid:
    """A grid that also sums ``slots`` numbers over the neurons: each thread has a column of sums in shared memory.

    Raises:
        ValueError: more slots than fit.
    """
    for threads in (t for t in (256, 128, 64, 32) if t <= THREADS):
        if 4 * slots * threads <= SHARED_BYTES:
            filled = -(-neurons // (LANES * threads))
            return Grid(min(filled, BLOCKS_PER_SM * multiprocessors(device)), threads, 4 * slots * threads)
    raise ValueError(f"{slots} per-step parameters are too many for backend='cupy': at most {MAX_SLOTS} fit")


def lanes(neurons: int, *tensors: Tensor | None) -> int:
    """``LANES`` if every row of every tensor can be read in words of that many, else 1."""
    aligned = all(t is None or t.data_ptr() % (LANES * t.element_size()) == 0 for t in tensors)
    return LANES if neurons % LANES == 0 and aligned else 1


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(path: Path, name: str, device: torch.device, grid: Grid, arguments: Iterable[Any]) -> None:
    """Launch one kernel on torch's current stream of ``device``; an empty grid is no launch.

    Args:
        path: the ``.cu`` file.
        name: the kernel with its template arguments, e.g. ``"empf_forward<float, false, 4>"``.
        device: a CUDA device with an index.
        grid: see :class:`Grid`.
        arguments: tensors (None or an empty one: a null pointer), floats (float32), ints and bools (int64), in the
            kernel's order.
    """
    if not grid.blocks:
        return
    packed = tuple(pack(a) for a in arguments)
    with torch.cuda.device(device):
        # CuPy asks a stream for its pointer only; which of its classes wraps a foreign one depends on the version.
        stream = SimpleNamespace(ptr=torch.cuda.current_stream(device).cuda_stream)
        _kernel(path, name, device)((grid.blocks,), (grid.threads,), packed, shared_mem=grid.shared, stream=stream)


def _kernel(path: Path, name: str, device: torch.device) -> Any:
    key = (device.index, path, name)
    if key not in _kernels:
        import cupy

        with _lock:
            if key not in _kernels:
                module = cupy.RawModule(code=source(path), options=OPTIONS, name_expressions=(name,))
                _kernels[key] = module.get_function(name)
    return _kernels[key]


def pack(argument: Any) -> Any:
    """A kernel argument as a NumPy scalar of the width that the kernel reads; see :func:`launch`."""
    import numpy as np

    if argument is None:
        return np.uint64(0)
    if isinstance(argument, Tensor):
        return np.uint64(argument.data_ptr() if argument.numel() else 0)
    return np.float32(argument) if isinstance(argument, float) else np.int64(argument)
