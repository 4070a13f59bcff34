"""The emulator: each ``.cu`` file compiled by g++ against ``emulator.h``, launched in place of CuPy on CPU tensors."""

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from sj_online.cuda import loader
from sj_online.neuron.empf import kernel as empf_kernel
from sj_online.neuron.lmh import kernel as lmh_kernel

HERE = Path(__file__).parent
SCALARS = tuple(loader.SCALARS.values())
BOOLS = ("false", "true")
LANES = ("1", "4")


def instances_of(kernel: str, *flags: Iterable[str]) -> list[str]:
    return [f"{kernel}<{', '.join(chosen)}>" for chosen in product(SCALARS, *flags, LANES)]


INSTANCES = {
    empf_kernel.SOURCE: [
        *instances_of("empf_forward", empf_kernel.KEEP.values(), BOOLS),
        *instances_of("empf_backward", ("unsigned char", "float"), BOOLS),
    ],
    lmh_kernel.SOURCE: [*instances_of("lmh_forward", BOOLS), *instances_of("lmh_backward", BOOLS)],
}
"""Every kernel with every combination of its flags."""

WRAPPER = """
#include "emulator.h"
#include "{kernel}"
#include <utility>
template <typename... A> void launch(void (*kernel)(A...), int blocks, int threads, void** arguments) {{
  [&]<size_t... I>(std::index_sequence<I...>) {{
    emulate(blocks, threads, [=] {{ kernel(*(A*)arguments[I]...); }});
  }}(std::index_sequence_for<A...>());
}}
"""
FLAGS = ["-std=c++20", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def cxx20() -> str | None:
    """A compiler with C++20's barrier, or None."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    probe = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"] if compiler else ["false"]
    found = subprocess.run(probe, input=b"#include <barrier>\nstd::barrier b(1);", capture_output=True)
    return compiler if found.returncode == 0 else None


def build(kernel: Path, compiler: str, folder: Path) -> ctypes.CDLL:
    """Compile every instance in INSTANCES of a kernel file, once per test session whatever the number of workers."""
    wrapper = WRAPPER.format(kernel=kernel)
    for i, name in enumerate(INSTANCES[kernel]):
        wrapper += f'extern "C" void k{i}(int b, int t, void** a) {{ launch({name}, b, t, a); }}\n'
    include = [f"-I{HERE}", f"-I{Path(loader.__file__).parent}"]
    library = folder / f"{kernel.parent.name}.so"
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            part = library.with_suffix(".part")
            command = [compiler, *FLAGS, *WARNINGS, *include, "-x", "c++", "-", "-o", str(part)]
            done = subprocess.run(command, input=wrapper, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            os.replace(part, library)
    return ctypes.CDLL(str(library))


@pytest.fixture
def instances() -> dict[Path, list[str]]:
    return INSTANCES


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, ctypes.CDLL]:
    compiler = cxx20()
    if compiler is None:
        pytest.skip("no C++20 compiler with <barrier>")
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return {kernel: build(kernel, compiler, folder) for kernel in INSTANCES}


@pytest.fixture
def emulator(libraries: dict[Path, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> Iterable[list[str]]:
    """CPU tensors reach the kernels, torch.empty is filled with NaN; yields the names of the kernels launched."""
    launched: list[str] = []

    def launch(path: Path, name: str, device: torch.device, grid: loader.Grid, arguments: Iterable[Any]) -> None:
        if grid.blocks:
            assert grid.shared <= 4 * 8192, "more shared memory than emulator.h has"
            values = [ctypes.create_string_buffer(loader.pack(a).tobytes()) for a in arguments]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
            getattr(libraries[path], f"k{INSTANCES[path].index(name)}")(grid.blocks, grid.threads, pointers)
            launched.append(name)

    monkeypatch.setattr(loader, "launch", launch)
    monkeypatch.setattr(loader, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(loader, "BLOCKS_PER_SM", 3)
    monkeypatch.setattr(loader, "THREADS", 32)
    torch.use_deterministic_algorithms(True)
    yield launched
    torch.use_deterministic_algorithms(False)
