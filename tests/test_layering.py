"""Imports point down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sj_online

PACKAGE = Path(__file__).parents[1] / "sj_online"
# What everyone may import.
GROUND = {
    "registry",
    "check",
    "host",
    "loss",
    "files",
    "tree",
    "install",
    "randomness",
    "state",
    "frames",
    "unroll",
    "contraction",
    "sources",
}
NETWORK = {"layer", "neuron", "prediction"}
LIBRARY = NETWORK | {"sparse", "topology", "trial", "optim", "trainer", "analysis", "deploy"}
# What each part may import, besides itself and the ground.
MAY_IMPORT = {
    **dict.fromkeys(GROUND, set()),
    "cuda": set(),
    "layer": set(),
    "prediction": set(),
    "neuron": {"layer", "cuda"},
    "topology": {"layer", "neuron"},
    "trial": {"layer", "neuron"},
    "model": NETWORK,
    "convert": NETWORK | {"trial"},
    "optim": NETWORK,
    "trainer": NETWORK | {"topology", "trial", "optim"},
    "sparse": NETWORK,
    "deploy": NETWORK | {"sparse"},
    "analysis": NETWORK,
    "testing": NETWORK | {"trainer", "analysis", "topology"},
    "data": set(),
    "recipes": set(),
    "app": LIBRARY | {"data", "recipes", "convert"},
}
# What the ground may import of itself: in this order, only what stands before.
ORDER = [
    "registry",
    "check",
    "files",
    "tree",
    "loss",
    "install",
    "host",
    "randomness",
    "state",
    "frames",
    "unroll",
    "contraction",
    "sources",
]


def imported(source: str, module: list[str]) -> set[str]:
    """The modules of this package that a module imports anywhere, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(["sj_online", *module[: len(module) - node.level]]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.removeprefix("sj_online.") for name in found if name.startswith("sj_online.")}


def upward(source: str, module: list[str]) -> set[str]:
    below = ORDER[: ORDER.index(module[0])] if module[0] in ORDER else GROUND
    allowed = {module[0], *MAY_IMPORT[module[0]], *below}
    return {name for name in imported(source, module) if name.split(".")[0] not in allowed}


MODULES = {path: [*path.relative_to(PACKAGE).parts[:-1], path.stem] for path in PACKAGE.rglob("*.py")}
del MODULES[PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(MODULES[path]))
def test_imports_point_down(path):
    assert upward(path.read_text(), MODULES[path]) == set()


def test_an_upward_import_is_seen():
    assert upward("from sj_online.app import loop", ["layer", "quant"]) == {"app.loop"}
    assert upward("from ..trainer import SLTT", ["deploy", "file"]) == {"trainer.SLTT"}
    assert upward("def f():\n    import sj_online.model.lmh", ["trainer", "base"]) == {"model.lmh"}
    assert upward("from ..layer import SECA\nfrom . import base", ["neuron", "hdlif"]) == set()


def test_the_deployed_runtime_needs_no_training_code():
    assert imported((PACKAGE / "deploy/runtime.py").read_text(), ["deploy", "runtime"]) <= {
        "deploy.pack.packed_size",
        "deploy.pack.unpack",
        "layer.integer",
        "layer.integer.Integers",
        "layer.quantized.Quantized",
    }


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_no_device_library_and_no_data():
    loaded = modules_after("import sj_online, sj_online.neuron, sj_online.layer, sj_online.trainer")
    assert "torch" in loaded
    assert not loaded & {"cupy", "sklearn", "torchvision.datasets", "spikingjelly.datasets", "sj_online.data"}


LIGHT = """
import sj_online
assert not {"torch", "spikingjelly"} & set(sys.modules)
from sj_online import registry
assert registry.names("neurons") and "torch" not in sys.modules
from sj_online import predict
assert sj_online.prediction.predict is predict is sj_online.predict and "sj_online.trainer" not in sys.modules
from sj_online import analysis, testing
assert (analysis.__name__, testing.__name__) == ("sj_online.analysis", "sj_online.testing")
testing.check_node
assert "sj_online.trainer" not in sys.modules
"""


def test_the_package_imports_its_parts_on_their_first_use():
    modules_after(f"exec({LIGHT!r})")
    with pytest.raises(AttributeError, match="module 'sj_online' has no attribute 'nothing'"):
        sj_online.nothing  # noqa: B018


@pytest.mark.parametrize("arguments", [["list", "recipes"], ["--help"], ["train", "--help"], ["train", "--seed=-1"]])
def test_the_command_line_answers_without_torch(arguments):
    code = f"from sj_online.app.cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert not modules_after(code) & {"torch", "spikingjelly", "lightning_fabric", "numpy"}
