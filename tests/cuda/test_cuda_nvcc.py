"""nvcc compiles every kernel for three generations of devices, and ptxas keeps it in registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sj_online.cuda import loader

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>sm_\d+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def resources(text: str, tmp_path: Path) -> list[dict[str, str]]:
    """What ptxas reports of each kernel in a source, for each architecture."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    path = tmp_path / "kernel.cu"
    path.write_text(text)
    targets = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in ARCHITECTURES]
    command = [nvcc, *loader.OPTIONS[:2], *targets, "-Xptxas=-v", "-fatbin", "-o", str(tmp_path / "out"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [match.groupdict() for match in REPORT.finditer(done.stderr)]


def test_kernels_compile_without_spills(instances: dict[Path, list[str]], tmp_path: Path) -> None:
    for kernel, every_name in instances.items():
        # The last instance of a kernel in bfloat16 has every flag set.
        names = list({name.split("<")[0]: name for name in every_name if "bfloat16" in name}.values())
        uses = "".join(f"(void)&{name}; " for name in names)
        report = resources(f"{loader.source(kernel)}\nvoid instances() {{ {uses} }}", tmp_path)
        assert len(report) == len(names) * len(ARCHITECTURES)
        for row in report:
            print(f"{row['arch']} {row['kernel']}: {row['registers']} registers, {row['stores']} bytes spilled")
            assert (row["stack"], row["stores"], row["loads"]) == ("0", "0", "0"), row


def test_a_spill_is_seen(tmp_path: Path) -> None:
    histogram = "int y[64] = {}; for (int j = 0; j < 99; j++) y[x[j] & 63]++; for (int j = 0; j < 64; j++) x[j] = y[j];"
    report = resources(f"__global__ void k(int* x) {{ {histogram} }}", tmp_path)
    assert len(report) == len(ARCHITECTURES)
    assert all(int(row["stack"]) > 0 for row in report)
