"""Runs that become sparse: the schedule over the run, the metrics, a resume, the files."""

import json

import pytest
import small
import torch
from safetensors.torch import load_file
from tinyrecipe import recipe

from sj_online import sparse
from sj_online.app import batches, networks, outcome
from sj_online.app.cli import main
from sj_online.app.loop import fit
from sj_online.app.sparse import Sparse

OPTIONS = [
    "--num_steps=2",
    "--model.options={width: 4, neuron: lmh, num_steps: null, synapse: float}",
    "--train.callbacks=[{name: sparse, options: {D: 0.05}}]",
    "--train.batch_size=64",
    "--train.epochs=2",
]
BATCHES = 2 * (1077 // 64)


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse") / "run"
    assert main(["train", "--out", str(out), *OPTIONS]) == 0
    return out


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_threshold_grows_over_the_run_and_sparsity_is_logged(sparse_run):
    first, last = metrics(sparse_run)
    assert last["sparse_threshold"] == 0.05
    assert first["sparse_threshold"] == pytest.approx(sparse.sine_schedule(BATCHES // 2 + 1, BATCHES, 0.05))
    assert 0 < first["sparsity"] < last["sparsity"] == json.loads((sparse_run / "summary.json").read_text())["sparsity"]
    layers = {name: value for name, value in last.items() if name.startswith("sparsity/")}
    net = networks.open_run(sparse_run)[1].net
    assert (
        layers == {f"sparsity/{name}": none / of for name, (none, of) in sparse.zeros(net).items()} and len(layers) == 4
    )
    assert last["sparsity"] == sparse.sparsity(net)


class Seen(Sparse):
    def __init__(self):
        super().__init__(0.05)
        self.thresholds = []

    def on_start(self, run):
        super().on_start(run)
        self.thresholds.append(self.schedule.threshold)

    def on_batch(self, run):
        super().on_batch(run)
        self.thresholds.append(self.schedule.threshold)


def test_each_batch_has_its_threshold(tmp_path):
    own = Seen()
    fit(small.parts(net=lambda: prepared(small.network()), callbacks=[own]), tmp_path)
    expected = [sparse.sine_schedule(n, 10, 0.05) for n in (1, 1, *range(2, 11), 10)]
    assert own.thresholds == expected


def prepared(net):
    sparse.prepare(net)
    return net


def test_the_exported_file_holds_zeros_and_predicts_as_the_run(sparse_run, tmp_path, capsys):
    file = tmp_path / "net.safetensors"
    assert main(["export", str(sparse_run), "--to", str(file)]) == 0
    capsys.readouterr()
    assert main(["eval", str(file)]) == main(["eval", str(sparse_run)]) == 0
    packed, trained = capsys.readouterr().out.splitlines()
    assert packed == trained
    ours, theirs = (outcome.open_for_evaluation(source) for source in (sparse_run, file))
    assert sparse.synapses(ours.net) and not sparse.synapses(theirs.net)
    assert sparse.sparsity(ours.net) == sparse.sparsity(theirs.net) > 0.1
    x, _ = ours.data.collate([ours.data.test[i] for i in range(100)])
    assert batches.predict(ours, x).equal(batches.predict(theirs, x))
    stored = load_file(file)
    weight = ours.net.features[3].conv
    assert torch.equal(stored["features.3.conv.weight"], weight.weight.cpu())
    assert not torch.equal(stored["features.3.conv.weight"], weight.parametrizations.weight.original.cpu())


def test_a_resumed_run_goes_on_with_the_threshold_and_ends_with_the_same_weights(sparse_run, tmp_path, monkeypatch):
    def stop(self, run):
        original(self, run)
        if run.progress.batches == 5:
            raise KeyboardInterrupt

    original = Sparse.on_batch
    out = tmp_path / "run"
    monkeypatch.setattr(Sparse, "on_batch", stop)
    options = [*OPTIONS, "--train.checkpoint_minutes=0"]
    assert main(["train", "--out", str(out), *options]) == 130
    monkeypatch.setattr(Sparse, "on_batch", original)
    assert main(["train", "--out", str(out), *options, "--resume"]) == 0
    whole, resumed = (networks.open_run(each)[1].net.state_dict() for each in (sparse_run, out))
    assert whole.keys() == resumed.keys() and all(whole[name].equal(value) for name, value in resumed.items())


def test_a_run_that_begins_from_a_sparse_one_takes_the_sparse_weights(sparse_run):
    trained = networks.open_run(sparse_run)[1].net
    weight, raw = trained.features[3].conv.weight, trained.features[3].conv.parametrizations.weight.original
    for callbacks in ([], ["sparse"]):
        options = {"width": 4, "neuron": "lmh", "num_steps": None, "synapse": "float"}
        asked = recipe(start={"run": str(sparse_run)}, model={"options": options}, train={"callbacks": callbacks})
        net = networks.begun(asked, networks.describe(asked))
        assert torch.equal(net.features[3].conv.weight, weight) and not torch.equal(net.features[3].conv.weight, raw)
        assert len(sparse.synapses(net)) == 4 * len(callbacks)


def test_options_out_of_range_and_networks_without_synapses(capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path / "a"), "--train.callbacks=[{name: sparse, options: {D: -1}}]"]) == 2
    assert "callback sparse: D=-1 is not in [0, 1e+06]" in capsys.readouterr().err
    asked = recipe(train={"callbacks": ["sparse"]})
    with pytest.raises(ValueError, match="callback sparse: net=Sequential: no convolution or linear layer"):
        networks._changed(asked, torch.nn.Sequential(torch.nn.ReLU()))
    assert not (tmp_path / "a").exists()
