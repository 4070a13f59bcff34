import json
import math
import os
import random
import shutil
import time
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import v2

from sj_online.app import batches, begin, state
from sj_online.app.callbacks import Checkpoint, Log
from sj_online.app.loop import Run, evaluate, fit
from sj_online.app.rundir import RunDirectory
from sj_online.data.base import Augmented, DataSet
from sj_online.trainer import BPTT, FPTT, SLTT


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def by_hand(epochs=2, smoothing=0.0):
    """The same run as plain lines."""
    data, net = small.digits(), small.parts().net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    rule = SLTT(net, optimizer, num_steps=2, loss_fn=partial(F.cross_entropy, label_smoothing=smoothing))
    losses, right, val, lrs = [], [], [], []
    for epoch in range(1, epochs + 1):
        lr = optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        order = batches.EpochSampler(320, 64, seed=0, epoch=epoch)
        total, hits = 0.0, 0
        for batch, places in enumerate(order):
            x, y = data.collate([data.train[place] for place in places])
            batches.seed(small.parts(), epoch, batch)
            net.train()
            result = rule.train_step(x, y)
            total += float(result.loss) / 5
            hits += int((result.output.argmax(1) == y).sum())
        x, y = data.validation[:]
        val.append(float((rule.predict(x).argmax(1) == y).double().mean()))
        losses.append(total), right.append(hits / 320), lrs.append(lr)
    return net, losses, right, val, lrs


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "done"
    parts, start = small.parts(), time.perf_counter()
    summary = fit(parts, out)
    assert 0 < summary["train_seconds"] < time.perf_counter() - start
    return parts, out, summary


def test_a_run_is_the_plain_loop(done):
    parts, out, summary = done
    net, losses, right, val, lrs = by_hand()
    for name, value in net.state_dict().items():
        assert torch.equal(parts.net.state_dict()[name], value), name
    for line, *expected in zip(lines(out), losses, right, val, lrs, strict=True):
        numbers = [line[name] for name in ("loss", "train_accuracy", "val_accuracy", "lr")]
        assert numbers == pytest.approx(expected, abs=1e-6)
    x, y = parts.data.test[:]
    output = parts.rule.predict(x)
    assert summary["test_accuracy"] == pytest.approx(float((output.argmax(1) == y).double().mean()))
    among = (output.topk(5).indices == y[:, None]).any(1).double().mean()
    assert summary["test_top5"] == pytest.approx(float(among))
    assert 0 < summary["test_accuracy"] < summary["test_top5"] < 1


def test_what_a_run_leaves(done):
    parts, out, summary = done
    names = {path.name for path in out.iterdir()} - {".lock"}
    assert names == {"config.yaml", "metrics.jsonl", "summary.json", "last.ckpt", "best.ckpt", "tensorboard"}
    assert (out / "config.yaml").read_text() == parts.recipe.to_yaml()
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["parameters"] == 64 * 32 + 32 + 2 * 32 + 32 * 10 + 10
    assert (summary["test_images"], summary["epochs"], summary["device"]) == (101, 2, "cpu")
    line = lines(out)[-1]
    assert line["images_per_second"] > 0 and 0 < line["waiting"] < 1
    assert line["seconds"] > 320 / line["images_per_second"]  # validation takes time too
    assert summary["train_seconds"] == pytest.approx(sum(each["seconds"] for each in lines(out)))
    progress = state.read(out / "last.ckpt")["progress"]
    assert (progress["epoch"], progress["batch"], progress["batches"]) == (2, 0, 10)
    best = max(lines(out), key=lambda line: line["val_accuracy"])
    assert (summary["best_epoch"], summary["best_val_accuracy"]) == (best["epoch"], best["val_accuracy"])
    assert state.read(out / "best.ckpt")["progress"]["epoch"] == best["epoch"]


def test_training_learns(tmp_path):
    """What a wrong loss, order or update would miss."""
    recipe = small.recipe(epochs=20, batch_size=32, checkpoint_minutes=10.0)
    assert fit(small.parts(recipe, rule=BPTT), tmp_path)["test_accuracy"] > 0.75


def test_the_loss_of_the_rule_is_what_is_logged(tmp_path):
    loss = partial(F.cross_entropy, label_smoothing=0.2)
    fit(small.parts(small.recipe(epochs=1), loss_fn=loss), tmp_path)
    assert lines(tmp_path)[0]["loss"] == pytest.approx(by_hand(1, smoothing=0.2)[1][0], abs=1e-6)
    assert lines(tmp_path)[0]["loss"] != pytest.approx(by_hand(1)[1][0], abs=1e-4)


def test_weights_decay(tmp_path):
    parts = small.parts(optimizer=partial(torch.optim.SGD, lr=1e-9, weight_decay=1e8))
    before = parts.net[1].weight.detach().clone()
    fit(parts, tmp_path)
    lr = [line["lr"] for line in lines(tmp_path)]
    shrunk = before * math.prod((1 - each * 1e8) ** 5 for each in lr)
    torch.testing.assert_close(parts.net[1].weight, shrunk, rtol=1e-3, atol=1e-6)


def test_a_schedule_moves_after_each_epoch(tmp_path):
    schedule = lambda optimizer, epochs: StepLR(optimizer, 1, gamma=0.1)  # noqa: E731
    fit(small.parts(small.recipe(epochs=3), schedule=schedule), tmp_path / "step")
    assert [line["lr"] for line in lines(tmp_path / "step")] == pytest.approx([0.1, 0.01, 0.001])
    fit(small.parts(schedule=None), tmp_path / "none")
    assert [line["lr"] for line in lines(tmp_path / "none")] == [0.1, 0.1]
    falls = lambda optimizer, epochs: ReduceLROnPlateau(optimizer, threshold=1e9, patience=0)  # noqa: E731
    fit(small.parts(small.recipe(epochs=3), schedule=falls), tmp_path / "plateau")
    assert [line["lr"] for line in lines(tmp_path / "plateau")] == pytest.approx([0.1, 0.01, 0.001])


class Stop(Checkpoint):
    """Saves after each batch, and ends the run after some."""

    def __init__(self, batches):
        super().__init__(0.0)
        self.batches = batches

    def on_batch(self, run):
        super().on_batch(run)
        if run.progress.batches == self.batches:
            raise KeyboardInterrupt


@pytest.mark.parametrize("batches", [5, 7, 10])
def test_more_epochs_on_resume(tmp_path, batches, capsys):
    """From then on the learning rate is what it would have been in a run of that length."""
    with pytest.raises(KeyboardInterrupt):
        fit(small.parts(callbacks=[Log(), Stop(batches)]), tmp_path)
    parts = small.parts(small.recipe(epochs=6))
    with warnings.catch_warnings(record=True, action="always") as warned:
        fit(parts, tmp_path, resume=True)
    assert not [warning for warning in warned if "lr_scheduler" in str(warning.message)]
    longer = [0.05 * (1 + math.cos(math.pi * epoch / 6)) for epoch in range(6)]
    done = (batches - 1) // 5
    assert [line["lr"] for line in lines(tmp_path)][done:] == pytest.approx(longer[done:])
    assert f"6 epochs in place of 2: the schedule goes on at lr {longer[done]:.4g}" in capsys.readouterr().out
    assert parts.schedule.last_epoch == 6
    assert state.read(tmp_path / "last.ckpt")["progress"]["epochs"] == 6


def test_a_schedule_that_looks_at_the_loss_goes_on_as_it_is(tmp_path, capsys):
    falls = lambda optimizer, epochs: ReduceLROnPlateau(optimizer, threshold=1e9, patience=1)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        fit(small.parts(schedule=falls, callbacks=[Log(), Stop(7)]), tmp_path)
    fit(small.parts(small.recipe(epochs=4), schedule=falls), tmp_path, resume=True)
    assert [line["lr"] for line in lines(tmp_path)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert capsys.readouterr().out.splitlines()[0] == "resuming after epoch 1, batch 2"


def test_an_epoch_is_trained_in_training_mode(tmp_path, done):
    class Evaluate:
        def on_epoch(self, run):
            run.parts.net.eval()

    parts = small.parts(callbacks=[Evaluate()])
    fit(parts, tmp_path)
    assert all(torch.equal(value, done[0].net.state_dict()[name]) for name, value in parts.net.state_dict().items())


def test_a_finished_run_goes_on_with_more_epochs(tmp_path, done):
    out = shutil.copytree(done[1], tmp_path / "run")
    seen = []

    class Look(Log):
        def on_start(self, run):
            seen.append((out / "summary.json").exists())

    fit(small.parts(small.recipe(epochs=3), callbacks=[Look(), Checkpoint(9.0)]), out, resume=True)
    assert [line["epoch"] for line in lines(out)] == [1, 2, 3]
    assert lines(out)[:2] == lines(done[1])
    assert seen == [False]
    assert json.loads((out / "summary.json").read_text())["epochs"] == 3


def test_a_finished_run_stays_as_it_is(tmp_path, done):
    out = shutil.copytree(done[1], tmp_path / "run")
    summary = fit(small.parts(), out, resume=True)
    for name in ("test_accuracy", "best_epoch", "train_seconds", "saved_bytes"):
        assert summary[name] == done[2][name]
    assert lines(out) == lines(done[1])
    with pytest.raises(ValueError, match=r"train.epochs=1 is less than .*last.ckpt has seen: it is in epoch 3"):
        fit(small.parts(small.recipe(epochs=1)), out, resume=True)


def test_fewer_epochs_than_were_begun_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(small.parts(callbacks=[Log(), Stop(6)]), tmp_path)  # a batch into the second
    with pytest.raises(ValueError, match=r"train.epochs=1 is less than .*last.ckpt has seen: it is in epoch 2"):
        fit(small.parts(small.recipe(epochs=1)), tmp_path, resume=True)


def test_after_an_epoch_the_batch_may_be_another(tmp_path):
    fit(small.parts(small.recipe(epochs=1)), tmp_path)
    fit(small.parts(small.recipe(epochs=2, batch_size=160)), tmp_path, resume=True)
    progress = state.read(tmp_path / "last.ckpt")["progress"]
    assert (progress["batches"], progress["batch_size"]) == (5 + 2, 160)


def test_a_momentum_that_the_schedule_moves_follows_too(tmp_path):
    cycle = lambda optimizer, epochs: OneCycleLR(optimizer, 0.1, total_steps=epochs + 1)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        fit(small.parts(schedule=cycle, callbacks=[Log(), Stop(7)]), tmp_path / "run")
    parts = small.parts(small.recipe(epochs=5), schedule=cycle)
    fit(parts, tmp_path / "run", resume=True)
    whole = small.parts(small.recipe(epochs=5), schedule=cycle)
    fit(whole, tmp_path / "whole")
    assert parts.optimizer.param_groups[0]["momentum"] == whole.optimizer.param_groups[0]["momentum"]
    assert lines(tmp_path / "run")[-1]["lr"] == lines(tmp_path / "whole")[-1]["lr"]


def sequences(T=3, N=100):
    """Frames that say their class at once, with a target for each step."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (N, T), generator=generator)
    x = F.one_hot(y, 64).float().view(N, T, 1, 8, 8)
    return x, y


def test_sequences_have_time_first(tmp_path):
    x, y = sequences()
    seen = []
    data = DataSet(classes=10, shape=(1, 8, 8), steps=3, train=Augmented(TensorDataset(x, y[:, 0]), [], 0),
                   validation=None, test=TensorDataset(x[:33], y[:33, 0]))  # fmt: skip
    mixup = v2.MixUp(num_classes=10)

    def watch(x, y):
        seen.append((type(x), x.shape))
        return mixup(x, y)

    parts = small.parts(replace(small.recipe(batch_size=32), num_steps=None), data=data)
    parts.batch = [watch]
    rule, given = parts.rule.train_step, []
    parts.rule.train_step = lambda x, y: (given.append((type(x), x.shape, y.shape)), rule(x, y))[1]
    fit(parts, tmp_path)
    assert {shape for _, shape in seen} == {(32, 3, 1, 8, 8)}  # the batch first, as mixup takes it
    assert set(given) == {(torch.Tensor, (3, 32, 1, 8, 8), (32, 10))}
    assert "val_accuracy" not in lines(tmp_path)[0]
    assert not (tmp_path / "best.ckpt").exists()


def test_batches_are_mixed(tmp_path):
    """Mixed targets have a higher loss than labels on the same weights; the first batch is the same."""
    losses = {}
    for name, batch in (("plain", []), ("mixed", [v2.CutMix(num_classes=10)])):
        parts = small.parts(small.recipe(epochs=1, batch_size=320))
        parts.batch = batch
        seen = []
        step = parts.rule.train_step
        parts.rule.train_step = lambda x, y, step=step, seen=seen: (seen.append(y), step(x, y))[1]
        fit(parts, tmp_path / name)
        losses[name] = lines(tmp_path / name)[0]["loss"]
        assert seen[-1].shape == ((320,) if name == "plain" else (320, 10))
    assert losses["mixed"] != losses["plain"]
    assert torch.allclose(seen[-1].sum(1), torch.ones(320))
    assert not torch.equal(seen[-1].max(1).values, torch.ones(320))


def test_draws_of_a_batch_depend_on_seed_epoch_and_batch_alone():
    parts = small.parts()

    def draw(*place):
        batches.seed(parts, *place)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    first = draw(1, 2)
    others = [draw(1, 3), draw(2, 2), draw(2, 1)]
    assert all(ours != theirs for each in others for ours, theirs in zip(first, each, strict=True))
    assert draw(1, 2) == first
    parts.recipe = replace(parts.recipe, seed=1)
    assert draw(1, 2) != first


@pytest.mark.parametrize("rule", [SLTT, FPTT])
def test_the_trial_puts_everything_back(rule):
    parts = small.parts(rule=rule)
    weights = {name: value.clone() for name, value in parts.net.state_dict().items()}
    rules = [value.clone() for _, value in sorted_tensors(parts.rule.state_dict())]
    saved, form = begin.trial(parts)
    assert saved > 0
    for name, value in parts.net.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert parts.optimizer.state_dict()["state"] == {}
    assert all(map(torch.equal, rules, [value for _, value in sorted_tensors(parts.rule.state_dict())]))
    assert set(form["optimizer"]["state"]) == set(range(6))


def sorted_tensors(value, name=""):
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [pair for key, each in items for pair in sorted_tensors(each, f"{name}.{key}")]


def test_what_cannot_train_says_so_before_anything_is_written(tmp_path):
    wrong = lambda: nn.Sequential(layer.Flatten(), layer.Linear(64, 5), neuron.LIFNode())  # noqa: E731
    with pytest.raises(ValueError, match="training rule sltt cannot train model small by this recipe: .*"):
        fit(small.parts(net=wrong), tmp_path / "run")
    with pytest.raises(ValueError, match="batch_size=400 must be from 1 to the 320 training items"):
        fit(small.parts(small.recipe(batch_size=400)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_in_use_is_refused(done):
    with pytest.raises(ValueError, match="is in use: it holds a run; give --resume"):
        fit(small.parts(), done[1])


class Broken(Dataset):
    """Fails at an item, in an epoch."""

    def __init__(self, data, error):
        self.data, self.error = data, error

    def __len__(self):
        return len(self.data)

    def __getitem__(self, place):
        if place[0] == 2:
            raise self.error
        return self.data[place]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_data_is_one_line_and_loses_no_epoch(tmp_path, done, workers):
    data = small.digits()
    broken = replace(data, train=Broken(data.train, KeyError("image 7")))
    with pytest.raises(ValueError, match=r"KeyError: .*image 7.*the traceback is in .*error.log") as error:
        fit(small.parts(small.recipe(workers=workers), data=broken), tmp_path)
    assert "\n" not in str(error.value)
    assert "in __getitem__" in (tmp_path / "error.log").read_text()
    fit(small.parts(), tmp_path, resume=True)
    ours, theirs = (state.read(out / "last.ckpt")["net"] for out in (tmp_path, done[1]))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_workers_stay(tmp_path):
    data = small.digits()

    class Ids(Dataset):
        def __len__(self):
            return 320

        def __getitem__(self, place):
            return torch.full((1, 8, 8), float(os.getpid())), place[1] % 10

    seen = []
    parts = small.parts(small.recipe(workers=2, epochs=3), data=replace(data, train=Ids(), validation=None))
    step = parts.rule.train_step
    parts.rule.train_step = lambda x, y: (seen.extend(x.unique().tolist()), step(x, y))[1]
    fit(parts, tmp_path)
    assert len(set(seen) - {float(os.getpid())}) == 2


class Noise(Dataset):
    """Draws for itself, without a seed of its own."""

    def __len__(self):
        return 64

    def __getitem__(self, place):
        return torch.rand(1, 8, 8), 0


def test_workers_are_seeded():
    def first(seed, of_process):
        parts = small.parts(replace(small.recipe(workers=1), seed=seed))
        torch.manual_seed(of_process)
        return next(iter(batches.load(parts, Noise(), batches.EpochSampler(64, 64, seed=0))))[0]

    assert torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.float32), ("64-true", torch.float64)])
def test_precision(tmp_path, precision, dtype):
    recipe = replace(small.recipe(epochs=1), fabric=replace(small.RECIPE.fabric, precision=precision))
    parts = small.parts(recipe)
    inner = []
    parts.net[1].register_forward_hook(lambda module, args, output: inner.append(output.dtype))
    fit(parts, tmp_path)
    assert set(inner) == {torch.bfloat16 if precision == "bf16-mixed" else torch.float64}
    assert parts.net[1].weight.dtype == dtype
    out = lines(tmp_path)[0]
    assert out["loss"] == pytest.approx(by_hand(1)[1][0], rel=0.02)


def conv():
    return nn.Sequential(
        layer.Conv2d(1, 4, 3), layer.BatchNorm2d(4), neuron.LIFNode(), layer.Flatten(), layer.Linear(4 * 36, 10)
    )


@pytest.mark.parametrize("steps", [(), (3,)])
def test_channels_last(steps):
    parts = small.parts(replace(small.RECIPE, fabric=replace(small.RECIPE.fabric, channels_last=True)))
    x = torch.randn(*steps, 5, 4, 8, 8)
    laid = batches.prepared(parts, x)
    assert torch.equal(laid, x)
    frame = laid[0] if steps else laid
    assert frame.is_contiguous(memory_format=torch.channels_last) and not frame.is_contiguous()
    flat = torch.randn(*steps, 5, 4)
    assert batches.prepared(parts, flat) is flat
    assert batches.prepared(small.parts(), x) is x


def test_evaluation_takes_masks(tmp_path):
    x, y = sequences(T=4, N=7)
    data = DataSet(classes=10, shape=(1, 8, 8), steps=4, per_step_targets=True, train=TensorDataset(x, y),
                   validation=None, test=TensorDataset(x, y))  # fmt: skip
    stats = begin.Statistics(10)
    output = torch.zeros(4, 7, 10)
    output[0, :, :] = F.one_hot(y[:, 0], 10)
    batch = next(iter(batches.evaluation(small.parts(data=data), data.test)))
    assert batch[0].shape == (4, 7, 1, 8, 8)
    mask = torch.zeros(4, 7, dtype=torch.bool)
    mask[0] = True
    mask[1, 0] = True
    stats.count(output, batch[1], [mask], loss=torch.tensor(2.0))
    first = int(batch[1][1, 0] == 0)  # where all outputs are equal the first class is taken
    assert stats.results()["accuracy"] == pytest.approx((7 + first) / 8)
    assert stats.results()["loss"] == 2.0


def test_ranks_share_what_is_evaluated(monkeypatch):
    parts = small.parts()
    monkeypatch.setattr(type(parts.fabric), "world_size", 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(type(parts.fabric), "global_rank", rank)
        seen.append(torch.cat([x for x, _ in batches.evaluation(parts, parts.data.test)]))
    images, _ = parts.data.test[:]
    assert seen[0].equal(images[::2]) and seen[1].equal(images[1::2])


def test_evaluate_leaves_the_network_as_it_was(done):
    parts = done[0]
    parts.net.train()
    before = {name: value.clone() for name, value in parts.net.state_dict().items()}
    found = evaluate(parts, batches.evaluation(parts, parts.data.test))
    assert found == {"accuracy": done[2]["test_accuracy"], "top5": done[2]["test_top5"]}
    assert parts.net.training
    assert all(torch.equal(value, before[name]) for name, value in parts.net.state_dict().items())


def test_nothing_counted_is_no_warning():
    with warnings.catch_warnings(action="error"):
        assert math.isnan(begin.Statistics(10).results()["loss"])


def test_few_classes_have_no_top5():
    stats = begin.Statistics(5)
    stats.count(torch.eye(5)[:3], torch.tensor([0, 1, 0]), loss=torch.tensor(math.nan))
    found = stats.results()
    assert found.keys() == {"loss", "accuracy"}
    assert math.isnan(found["loss"]) and found["accuracy"] == pytest.approx(2 / 3)


def test_the_state_of_a_run_is_of_its_own_directory(tmp_path):
    run = Run(small.parts(), RunDirectory(tmp_path))
    run.save("best")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert run.notes == []
