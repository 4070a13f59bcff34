import hashlib
import os
import pickle
import resource
import shutil
import warnings
import zipfile
from functools import partial

import pytest
import small
import torch
from torch import nn

from sj_online.app import state
from sj_online.app.callbacks import Checkpoint
from sj_online.app.loop import fit
from sj_online.app.state import FORMAT, MARK, Progress
from sj_online.app.statistics import Statistics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run within its second epoch."""
    out = tmp_path_factory.mktemp("runs") / "trained"

    class Stop(Checkpoint):
        def on_batch(self, run):
            super().on_batch(run)
            if run.progress.batches == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small.parts(callbacks=[Stop(0.0)]), out)
    return out


def problem(trained, tmp_path, change, **parts):
    """What is said of a changed checkpoint; nothing in the directory may change."""
    out = shutil.copytree(trained, tmp_path / "run")
    change(out / "last.ckpt")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    made = small.parts(small.recipe(epochs=parts.pop("epochs", 2)), **parts)
    weights = [p.detach().clone() for p in made.net.parameters()]
    with pytest.raises(ValueError) as error, warnings.catch_warnings(record=True, action="always") as warned:
        fit(made, out, resume=True)
    assert not warned
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert all(map(torch.equal, weights, made.net.parameters()))
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(out), "OUT")


def rewritten(path, change):
    """A checkpoint with a changed state and a checksum that fits."""
    loaded = state.read(path)
    change(loaded)
    torch.save(loaded, path)
    sealed(path)


def sealed(path):
    body = path.read_bytes()
    path.write_bytes(body + MARK + hashlib.sha256(body).digest())


def test_a_written_state_is_read_as_it_was(tmp_path):
    path = tmp_path / "a[0]*.ckpt"
    parts = small.parts()
    now = state.capture(parts, Statistics(10), Progress(epochs=3))
    assert all(value.is_meta for value in state.forms(now)["net"].values())
    state.write(path, now)
    read = state.read(path)
    assert read.keys() == now.keys()
    assert all(torch.equal(read["net"][name], value) for name, value in now["net"].items())
    assert read["progress"]["epochs"] == 3
    assert torch.load(path, weights_only=True)["format"] == FORMAT  # by anyone
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 3, 500, 1500, 0.5, -1, -20, -len(MARK) - 32])
def test_cut_short(trained, tmp_path, keep):
    def cut(path):
        size = path.stat().st_size
        os.truncate(path, int(size * keep) if 0 < keep < 1 else keep % size if keep else 0)

    assert problem(trained, tmp_path, cut).startswith("OUT/last.ckpt is damaged: ")


@pytest.mark.parametrize("place", [0.0, 0.01, 0.2, 0.5, 0.9, 0.9999])
def test_a_flipped_bit(trained, tmp_path, place):
    def flip(path):
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 4
        path.write_bytes(data)

    assert problem(trained, tmp_path, flip) == ("OUT/last.ckpt is damaged: its bytes do not match their checksum")


def test_a_checkpoint_of_a_gpu_is_read_without_one(trained, tmp_path):
    path = tmp_path / "x.ckpt"
    body = (trained / "last.ckpt").read_bytes()[: -len(MARK) - 32]
    path.write_bytes(body.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00gpu"))
    sealed(path)
    with pytest.raises(RuntimeError, match="tagged with gpu"):
        torch.load(path, weights_only=True)
    assert state.read(path)["net"]["1.weight"].device.type == "cpu"


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in ("data.pkl", "version", *names):
            file.writestr(f"archive/{name}", pickle.dumps(FORMAT))


def foreign(kind, tmp_path):
    evil = Evil(tmp_path / "run" / "evil")
    old = pickle.dumps({"format": FORMAT, "net": evil})
    return {
        "text": lambda path: path.write_text("weights " * 500),
        "bytes": lambda path: path.write_bytes(bytes(range(256)) * 50),
        "weights": lambda path: torch.save(nn.Linear(100, 100).state_dict(), path),
        "pickle": lambda path: path.write_bytes(pickle.dumps([evil] * 500)),
        "torch pickle": lambda path: torch.save({"x": torch.ones(900), "evil": evil}, path),
        "sealed pickle": lambda path: (torch.save({"format": FORMAT, "net": evil}, path), sealed(path)),
        "sealed old pickle": lambda path: (path.write_bytes(old), sealed(path)),
        "sealed list": lambda path: (torch.save([FORMAT], path), sealed(path)),
        "sealed script": lambda path: (archive(path, "constants.pkl"), sealed(path)),
        "another format": lambda path: rewritten(path, lambda loaded: loaded.update(format="sj_online run 2")),
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["text", "bytes", "weights", "pickle", "torch pickle", "sealed pickle", "sealed old pickle", "sealed list",
     "sealed script", "another format"],
)  # fmt: skip
def test_foreign_files_run_no_code(trained, tmp_path, kind):
    assert problem(trained, tmp_path, foreign(kind, tmp_path)).startswith("OUT/last.ckpt is no checkpoint of a run")
    assert not (tmp_path / "run" / "evil").exists()


def put(place, value):
    *folders, name = place

    def change(loaded):
        for folder in folders:
            loaded = loaded[folder]
        loaded[name] = value(loaded[name]) if callable(value) else value

    return partial(rewritten, change=change)


W, M = ("net", "1.weight"), ("optimizer", "state", 0, "momentum_buffer")
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (W, lambda w: w.t(), "of another network: net.1.weight is [64, 32], and [32, 64] here"),
        (W, lambda w: w.long(), "of another network: net.1.weight is torch.int64, and torch.float32 here"),
        (W, lambda w: w.to(torch.complex64), "of another network: net.1.weight is torch.complex64"),
        (W, lambda w: w * NAN, "damaged: net.1.weight is not finite"),
        (W, lambda w: w.to_sparse(), "of another network: net.1.weight is no plain tensor"),
        (W, lambda w: torch.empty(32, 64, device="meta"), "of another network: net.1.weight is no plain tensor"),
        (W, 3, "of another network: net.1.weight is no plain tensor"),
        (("net",), lambda net: {**net, "new": net["1.weight"]}, "of another network: net differs in new"),
        (("net",), lambda net: {"1.weight": net["1.weight"]}, "of another network: net differs in 1.bias, 2."),
        (("net",), [1], "of another network: net differs in a list"),
        (("net", "2.running_var"), lambda v: v / 0, "damaged: net.2.running_var is not finite"),
        (M, lambda m: m[:1], "damaged or of another recipe: optimizer.state.0.momentum_buffer is [1, 64]"),
        (M, lambda m: m * NAN, "optimizer.state.0.momentum_buffer is not finite"),
        (M, None, "optimizer.state.0.momentum_buffer is no plain tensor"),
        (("optimizer", "state"), lambda s: {**s, 99: s[0]}, "optimizer.state differs in 99"),
        (("optimizer", "state"), [], "optimizer.state differs in a list"),
        (("optimizer",), 3, "optimizer differs in a int"),
        (("optimizer", "param_groups"), lambda g: g * 2, "optimizer.param_groups is ["),
        (("optimizer", "param_groups", 0, "params"), lambda p: p[:-1], "optimizer.param_groups.0.params is ["),
        (("optimizer", "param_groups", 0, "lr"), NAN, "optimizer.param_groups.0.lr is nan"),
        (("optimizer", "param_groups", 0, "lr"), "0.1", "optimizer.param_groups.0.lr is 0.1"),
        (("optimizer", "param_groups", 0, "lr"), 10**400, "optimizer.param_groups.0.lr is 1000"),
        (("schedule",), {}, "schedule differs in"),
        (("schedule", "last_epoch"), INF, "schedule.last_epoch is inf"),
        (("rule",), {"k": 1}, "rule differs in k"),
        (("metrics", "loss.mean_value"), torch.zeros(2), "metrics.loss.mean_value is [2], and [] here"),
        (("progress",), {}, "damaged or of another recipe: progress differs in batch, batch_size, batches"),
        (("progress",), 7, "progress differs in a int"),
        (("progress", "epoch"), 7, "damaged: its progress is epoch 7 of 2"),
        (("progress", "epoch"), -1, "damaged: its progress is counts"),
        (("progress", "batches"), 2**70, "progress.batches is 1180591620717411303424"),
        (("progress", "batch"), True, "damaged: its progress is counts"),
        (("progress", "batch"), 7, "damaged: its progress is epoch 1 of 2"),
        (("progress", "batch"), 6, "damaged or of other data: 6 batches of an epoch that has 5"),
        (("progress", "best_epoch"), 2, "damaged: its progress is epoch 1 of 2, best 2"),
        (("progress", "seconds"), NAN, "progress.seconds is nan"),
        (("progress", "best_accuracy"), "1", "progress.best_accuracy is 1"),
        (("progress", "best_accuracy"), 1, "damaged: its progress is accuracy"),
        (("progress", "new"), 1, "progress differs in new"),
    ],
)  # fmt: skip
def test_what_does_not_fit(trained, tmp_path, place, value, message):
    assert message in problem(trained, tmp_path, put(place, value))


def test_differences():
    def found(here, there):
        return list(state.differences(here, there, "x"))

    same = {"text": "min", "none": None, "number": 1, "list": [1.0, (2, True)], "best": INF}
    assert not found(same, {"text": "max", "none": [3], "number": 2.5, "list": (2, [1, 0.5]), "best": 0.1})
    assert found({"text": "min"}, {"text": 3}) == ["x.text is a int, and a str here"]
    assert found({1: {"a": 0}}, {1: {"a": INF}}) == ["x.1.a is inf, and 0 here"]
    assert found([1, [2]], [1, [2, 3]]) == ["x.1 is [2, 3], and [2] here"]
    assert found((1,), 1) == ["x is 1, and (1,) here"]
    assert found({"a": 1, "b": 1, "c": 1, "d": 1}, {}) == ["x differs in a, b, c"]
    assert not found(1, 2**63 - 1) and not found(1, -(2**63) + 1)
    assert found(1, 2**63) and found(1, -(2**63))


def test_not_finite():
    bad = torch.tensor([1.0, NAN])
    found = state.not_finite({"a": [torch.ones(2), (bad, 3)], "b": torch.ones(2, dtype=torch.int64), "c": bad}, "x")
    assert list(found) == ["x.a.1.0", "x.c"]


def test_progress_is_checked():
    assert Progress() == Progress(0, 0, 0, 1, 1, 0, -1.0, 0.0)
    most = 2**63 - 1
    assert Progress(batches=most, batch=most - 1, epoch=1, best_epoch=1).batches == most
    for wrong in ({"batches": most + 1}, {"epoch": 1.0}, {"batch": -1}, {"epoch": 2, "batches": 9}, {"epoch": 1},
                  {"best_epoch": 1}, {"seconds": 1}, {"best_accuracy": INF}, {"batch": 2, "batches": 1}):  # fmt: skip
        with pytest.raises(ValueError):
            Progress(**wrong)


@pytest.mark.parametrize("part", ["net", "optimizer", "schedule", "rule", "precision", "metrics", "progress"])
def test_a_part_that_is_missing(trained, tmp_path, part):
    change = partial(rewritten, change=lambda loaded: loaded.pop(part))
    assert problem(trained, tmp_path, change) == f"OUT/last.ckpt is damaged: it holds no {part}"


def test_of_a_run_with_other_parts(trained, tmp_path):
    nothing = lambda path: None  # noqa: E731
    assert "of another network: net differs in 2." in problem(
        trained, tmp_path / "a", nothing, net=partial(small.network, norm=False)
    )
    adam = partial(torch.optim.Adam, lr=0.1)
    assert "of another recipe: optimizer.state" in problem(trained, tmp_path / "b", nothing, optimizer=adam)


@pytest.mark.parametrize("name", ["1.weight", "2.running_mean"])
def test_a_checkpoint_that_is_not_finite_is_not_written(tmp_path, name):
    parts = small.parts()
    parts.net.state_dict()[name].view(-1)[3] = NAN
    with pytest.raises(ValueError, match=f"net.{name} is not finite: training diverged"):
        state.write(tmp_path / "x.ckpt", state.capture(parts, Statistics(10), Progress()))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(trained, tmp_path):
    path = shutil.copy(trained / "last.ckpt", tmp_path / "x.ckpt")
    before = state.read(path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, old[1]))
    try:
        with pytest.raises(OSError, match="x.ckpt cannot be written: .*File too large"):
            state.write(path, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert torch.equal(state.read(path)["net"]["1.weight"], before["net"]["1.weight"])
    assert len(list(tmp_path.iterdir())) == 1


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=f"there is no checkpoint {tmp_path}"):
        state.read(tmp_path)


def scaling(parts, **held):
    """Parts whose precision has a state, as that of fp16 on a GPU."""
    precision = parts.fabric.strategy.precision
    precision.state_dict, precision.load_state_dict = lambda: dict(held), held.update
    return parts, held


def test_the_scale_of_half_precision_comes_back_and_precision_may_change(trained, tmp_path):
    path = tmp_path / "run" / "last.ckpt"
    shutil.copytree(trained, path.parent)
    rewritten(path, lambda loaded: loaded.update(precision={"scale": 8.0}))
    for number, (given, message, expected) in enumerate(
        [
            ({"scale": 1.0}, None, {"scale": 8.0}),
            ({}, None, {"scale": 8.0}),
            ({"other": 1.0}, "differs in other, scale", {}),
        ]
    ):
        parts, held = scaling(small.parts(), **given)
        out = shutil.copytree(path.parent, tmp_path / str(number))
        if message:
            with pytest.raises(ValueError, match=f"of another recipe: precision {message}"):
                fit(parts, out, resume=True)
        else:
            fit(parts, out, resume=True)
            assert held == expected
    rewritten(path, lambda loaded: loaded.update(precision={}))
    parts, held = scaling(small.parts(), scale=2.0)
    fit(parts, path.parent, resume=True)
    assert held == {"scale": 2.0}
