import json
import multiprocessing
import os
import socket
import sys
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sj_online import recipe, run
from sj_online.cli import main
from sj_online.recipe import Model, Recipe, Train
from sj_online.session import Session

SMALL = Recipe(
    num_steps=2,
    model=Model("small_vgg", {"width": 4}),
    train=Train("sltt", {"update": "step", "step_scale": "sum"}, epochs=1, batch_size=256),
)


def test_a_run_leaves_these_files(run_dir):
    names = {path.name for path in run_dir.iterdir()} - {".lock"}
    assert names == {"config.yaml", "metrics.jsonl", "summary.json", "last.ckpt", "best.ckpt", "tensorboard"}


def test_summary(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert 0.3 < summary["test_accuracy"] <= 1
    assert summary["train_seconds"] > 0
    assert summary["peak_memory_bytes"] > summary["saved_bytes"] > 0
    stem, convs, readout, norms, neurons = 4 * 9, (4 * 8 + 8 * 16) * 9, 16 * 10 + 10, 2 * (4 + 8 + 16), 3 * 2 * 2
    assert summary["parameters"] == stem + convs + readout + norms + neurons


def test_metrics_are_also_in_tensorboard(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert lines[1]["lr"] == pytest.approx(lines[0]["lr"] / 2)
    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    for name in ("loss", "train_accuracy", "val_accuracy", "lr"):
        assert [event.value for event in board.Scalars(name)] == pytest.approx([line[name] for line in lines])


def test_config_is_the_whole_recipe(run_dir):
    config = recipe.load(run_dir / "config.yaml")
    assert (config.num_steps, config.train.epochs, config.train.rule) == (2, 2, "sltt")
    assert config.to_yaml() == (run_dir / "config.yaml").read_text()


def test_best_is_chosen_on_validation_data_and_the_rest_uses_last(tmp_path, monkeypatch):
    """Validation gets worse after epoch 1; the test accuracy is that of the last epoch."""
    accuracies, measured = iter([0.9, 0.5, 0.4]), []

    def accuracy(session, images):
        measured.append("test" if images is session.splits.test else "val")
        return next(accuracies)

    monkeypatch.setattr(Session, "accuracy", accuracy)
    config = replace(SMALL, train=replace(SMALL.train, epochs=2))
    summary = run.train(config, tmp_path / "run")
    assert measured == ["val", "val", "test"]
    assert (summary["best_epoch"], summary["best_val_accuracy"], summary["test_accuracy"]) == (1, 0.9, 0.4)
    last, best = (run.open_run(tmp_path / "run", checkpoint=which) for which in ("last", "best"))
    counts = [session.net.features[0].norm.num_batches_tracked.item() for session in (last, best)]
    assert counts[0] == 2 * counts[1]


def test_saved_bytes_do_not_grow_with_T_online_and_do_under_bptt(tmp_path):
    def saved(T, rule):
        """With one threshold and decay for all steps: a vector of T of them is itself saved."""
        model = Model("small_vgg", {"width": 4, "num_steps": None})
        config = replace(SMALL, num_steps=T, model=model, train=replace(SMALL.train, rule=rule, options={}))
        return run.train(config, tmp_path / f"{rule}{T}")["saved_bytes"]

    assert saved(2, "sltt") == saved(6, "sltt") > 0
    assert saved(6, "bptt") > 2 * saved(2, "bptt")


def test_diverged_training_is_an_error(tmp_path):
    config = replace(SMALL, train=replace(SMALL.train, lr=1e30))
    with pytest.raises(ValueError, match="loss of epoch 1 is .*: training diverged"):
        run.train(config, tmp_path / "run")


@pytest.mark.parametrize("rule", ["random_bp", "bptt"])
def test_mixed_precision(tmp_path, rule):
    config = replace(SMALL, train=replace(SMALL.train, rule=rule, options={}))
    config = replace(config, fabric=replace(config.fabric, precision="bf16-mixed"))
    session = Session(config)
    before = session.net.features[3].conv.weight.clone()
    x, y = next(iter(session.training_batches()))
    session.train_step(x, y)
    assert session.net.features[3].conv.weight.dtype == torch.float32
    assert not torch.equal(session.net.features[3].conv.weight, before)


def test_draws_of_an_epoch_depend_on_seed_and_epoch_alone():
    session = Session(SMALL)

    def draw(epoch):
        session.seed(epoch)
        return next(iter(session.training_batches()))[0]

    first = draw(1)
    assert not torch.equal(first, draw(2))
    assert torch.equal(first, draw(1))


def rank_of_torchrun(rank, port, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(main(arguments))


def test_two_processes_train_one_network(tmp_path, tiny):
    """Each takes half of every batch; the first writes the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["train", "--out", str(tmp_path / "run"), *tiny, "--fabric.devices=2", "--fabric.accelerator=cpu"]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_of_torchrun, args=(rank, port, arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < lines[0]["loss"]
    steps = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["net"]["features.0.norm.num_batches_tracked"]
    assert steps == 2 * 2 * (1077 // 2 // 32)  # epochs, T, batches of 32 for each process
    assert main(["eval", str(tmp_path / "run")]) == 0
