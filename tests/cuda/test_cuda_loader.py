"""The loader: every reason why not, one compilation per device and kernel, torch's stream."""

import runpy
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sj_online.cuda import loader
from sj_online.neuron import EMPFNode, LMHNode
from sj_online.neuron.empf import kernel


def test_import_leaves_cupy_alone() -> None:
    code = "import sys, sj_online.neuron.empf.kernel, sj_online.cuda.loader; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_reason_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_CUPY", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parts = ("CuPy is not installed", "no CUDA device", "x is on cpu", "x has dtype torch.float64")
    for node in (EMPFNode(backend="cupy"), LMHNode(backend="cupy", step_mode="m")):
        with pytest.raises(RuntimeError) as error:
            node(torch.zeros(2, 3, dtype=torch.float64))
        assert all(part in str(error.value) for part in parts), error.value
        assert "\n" not in str(error.value)
    assert len(loader.reasons(torch.zeros(2))) == 3


def test_auto_falls_back_to_torch_and_cupy_does_not() -> None:
    x = torch.rand(3, 4)
    assert torch.equal(EMPFNode(backend="auto", step_mode="m")(x), EMPFNode(step_mode="m")(x))
    with pytest.raises(RuntimeError, match="backend='cupy' cannot run EMPFNode: .*x is on cpu"):
        EMPFNode(backend="cupy", step_mode="m")(x)


class FakeCuPy(ModuleType):
    """Records what is compiled and launched."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.compiled: list[dict[str, Any]] = []
        self.launched: list[tuple[Any, ...]] = []

    def RawModule(self, **kwargs: Any) -> SimpleNamespace:
        self.compiled.append(kwargs)
        return SimpleNamespace(get_function=lambda name: lambda *args, **options: self.launched.append((args, options)))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCuPy:
    fake = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(loader, "_kernels", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: threading.Lock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1000 + device.index))
    return fake


def test_launch_passes_pointers_and_scalars_by_value_on_torchs_stream(cupy: FakeCuPy) -> None:
    x = torch.zeros(8)
    arguments = (x, None, torch.empty(0), 7, True, 0.5)
    loader.launch(kernel.SOURCE, "k<float>", torch.device("cuda", 1), loader.Grid(3, 32, 64), arguments)
    ((grid, block, packed), options) = cupy.launched[0]
    assert (grid, block, options["shared_mem"], options["stream"].ptr) == ((3,), (32,), 64, 1001)
    assert packed == (x.data_ptr(), 0, 0, 7, 1, 0.5)
    assert [type(a) for a in packed] == [np.uint64] * 3 + [np.int64] * 2 + [np.float32]


def test_one_compilation_per_device_and_kernel(cupy: FakeCuPy) -> None:
    def launch(index: int, name: str) -> None:
        loader.launch(kernel.SOURCE, name, torch.device("cuda", index), loader.Grid(1, 32), ())

    threads = [threading.Thread(target=launch, args=(i % 2, f"k<{i % 3}>")) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(cupy.compiled), len(cupy.launched)) == (6, 24)
    assert all(c["options"] == loader.OPTIONS and len(c["name_expressions"]) == 1 for c in cupy.compiled)


def test_an_empty_grid_is_no_launch(cupy: FakeCuPy) -> None:
    loader.launch(kernel.SOURCE, "k", torch.device("cuda", 0), loader.grid(0), ())
    assert not cupy.compiled


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_the_benchmark_says_in_one_line_that_it_cannot_run() -> None:
    path = Path(__file__).parents[2] / "examples" / "bench_kernels.py"
    with pytest.raises(SystemExit, match="^bench_kernels cannot run: .*torch finds no CUDA device$") as error:
        runpy.run_path(str(path), run_name="__main__")
    assert error.value.code not in (0, None)


def test_source_is_one_text() -> None:
    for path in Path(kernel.__file__).parents[1].glob("*/kernel.cu"):
        assert "#include" in path.read_text()
        assert "#include" not in loader.source(path)


def test_installed_cupy_launches_on_any_object_with_a_pointer() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    function = cupy.cuda.Function.__new__(cupy.cuda.Function)
    with pytest.raises(AttributeError, match="ptr"):
        function((1,), (1,), (), shared_mem=0, stream=object())
