"""The compiler that CuPy calls on a device takes every kernel: it needs no device, and is stricter than nvcc."""

from pathlib import Path

import pytest

from sj_online.cuda import loader

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda.bindings, which torch's CUDA builds bring along")


def compile_kernels(source: str, names: list[str], options: tuple[str, ...]) -> str:
    """Compile for sm_80; returns the errors, and checks that every name was instantiated."""
    try:
        _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    except RuntimeError as error:
        pytest.skip(f"the NVRTC library cannot be loaded: {error}")
    for name in names:
        nvrtc.nvrtcAddNameExpression(program, name.encode())
    flags = [option.encode() for option in (*options, "-arch=sm_80")]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * (size + 1)  # it is written to: a single byte would be the one that all of Python shares
    nvrtc.nvrtcGetProgramLog(program, log)
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        return log[:size].decode()
    for name in names:
        _, lowered = nvrtc.nvrtcGetLoweredName(program, name.encode())
        assert lowered, name
    return ""


def test_every_vector_instance_compiles_as_cupy_compiles_it(instances: dict[Path, list[str]]) -> None:
    for path, every_name in instances.items():
        names = [name for name in every_name if name.endswith(f" {loader.LANES}>")]
        assert not compile_kernels(loader.source(path), names, loader.OPTIONS)


def test_a_kernel_that_only_nvcc_takes_is_refused(instances: dict[Path, list[str]]) -> None:
    path, names = next(iter(instances.items()))
    assert "host functions are not allowed" in compile_kernels(loader.source(path), names[:1], loader.OPTIONS[:2])
