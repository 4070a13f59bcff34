"""Runs that begin from other runs."""

import pytest
import torch
from tinyrecipe import parts

from sj_online import registry
from sj_online.app import networks
from sj_online.app.cli import main
from sj_online.app.rehearse import rehearse
from sj_online.neuron import LMHNode
from sj_online.trainer import SLTT


def test_start_from_another_run(run_dir):
    """With its weights, and with another rule, schedule and number of epochs."""
    start = {"run": str(run_dir)}
    begun = parts(start=start, train={"rule": "bptt"}).net.state_dict()
    trained = networks.open_run(run_dir)[1].net.state_dict()
    best = networks.open_run(run_dir, "best")[1].net.state_dict()
    assert all(begun[name].equal(value) for name, value in trained.items())
    from_best = parts(start=start | {"checkpoint": "best"}).net.state_dict()
    assert all(from_best[name].equal(value) for name, value in best.items())
    fresh = parts().net.state_dict()
    assert not all(fresh[name].equal(value) for name, value in trained.items())


def test_start_converted(run_dir):
    convert = {"name": "swap_neurons", "options": {"name": "lmh", "num_steps": 2}}
    made = parts(start={"run": str(run_dir), "convert": convert})
    kinds = {type(module).__name__ for module in made.net.modules()}
    assert "LMHNode" in kinds and "EMPFNode" not in kinds
    trained = networks.open_run(run_dir)[1].net
    assert made.net.features[3].conv.weight.equal(trained.features[3].conv.weight)
    assert isinstance(made.rule, SLTT)
    rehearse(made, 4)


def test_a_start_that_does_not_fit(run_dir):
    with pytest.raises(ValueError, match="last.ckpt is of another network"):
        parts(start={"run": str(run_dir)}, model={"options": {"width": 8}})
    with pytest.raises(ValueError, match="conversion qcfs_to_lmh: "):
        parts(start={"run": str(run_dir), "convert": "qcfs_to_lmh"})
    with pytest.raises(ValueError, match="conversion swap_neurons: .*'nope' is not a registered name of neurons"):
        parts(start={"run": str(run_dir), "convert": {"name": "swap_neurons", "options": {"name": "nope"}}})


def test_a_converted_run_is_trained_evaluated_and_not_packed(tmp_path, run_dir, tiny, capsys):
    out, convert = str(tmp_path / "hybrid"), "{name: swap_neurons, options: {name: lmh, num_steps: 2}}"
    options = [*tiny[:2], "--train.epochs=1", "--train.batch_size=256"]
    assert main(["train", "--out", out, *options, f"--start.run={run_dir}", "--start.convert", convert]) == 0
    capsys.readouterr()
    assert main(["eval", out]) == 0
    assert "accuracy 0." in capsys.readouterr().out
    assert main(["export", out, "--to", str(tmp_path / "x.safetensors")]) == 2
    assert "began from a converted network" in capsys.readouterr().err


QCFS = "--model.options={width: 4, synapse: float, neuron: qcfs, neuron_options: {levels: 4, threshold: 2.0}}"


@pytest.fixture(scope="module")
def ann(tmp_path_factory):
    """The directory of an ANN."""
    out = tmp_path_factory.mktemp("ann") / "run"
    options = [QCFS, "--num_steps=1", "--train.rule=bptt", "--train.epochs=4", "--train.batch_size=64"]
    assert main(["train", "--out", str(out), *options]) == 0
    return out


def accuracies(out):
    *rows, last = out.splitlines()
    return [float(row.split()[3]) for row in rows], last


def test_hybrid_training_is_two_runs(tmp_path, ann, capsys):
    """The ANN, what conversion leaves of it, and the run that goes on from there; by the command line."""
    capsys.readouterr()
    assert main(["eval", str(ann)]) == 0
    of_ann = float(capsys.readouterr().out.split()[1])
    assert main(["eval", str(ann), "--convert", "qcfs_to_lmh", "--steps=8"]) == 0
    converted, last = accuracies(capsys.readouterr().out)
    assert len(converted) == 8 and last.startswith(f"accuracy {converted[-1]:.4f} after 8 steps, best ")
    assert converted[0] < converted[3] and abs(converted[3] - of_ann) < 0.1
    out, convert = str(tmp_path / "hybrid"), "{name: qcfs_to_lmh, options: {num_steps: null}}"
    options = [QCFS, "--num_steps=4", "--train.rule=bptt", "--train.epochs=1", "--train.batch_size=64"]
    lr = "--train.optimizer={name: sgd, options: {lr: 0.01}}"
    assert main(["train", "--out", out, *options, lr, f"--start.run={ann}", "--start.convert", convert]) == 0
    recipe, made = networks.open_run(out)
    nodes = [module for module in made.net.modules() if isinstance(module, LMHNode)]
    assert len(nodes) == 3 and recipe.num_steps == 4 and any(node.lambda_s != 1 for node in nodes)
    source = networks.open_run(ann)[1].net
    assert [n.v_threshold for n in nodes] == [m.threshold.item() for m in source.modules() if hasattr(m, "levels")]
    capsys.readouterr()
    assert main(["eval", out, "--steps=6"]) == 0
    assert len(accuracies(capsys.readouterr().out)[0]) == 6


def test_a_relu_network_is_calibrated_on_the_training_data(tmp_path, capsys, monkeypatch):
    """And opened again without them: the thresholds are in the checkpoint."""
    monkeypatch.setattr(registry, "get", registry_with_relu(registry.get))
    options = ["--num_steps=1", "--train.rule=bptt", "--train.epochs=1", "--train.batch_size=256"]
    model = "--model.options={width: 4, synapse: float, neuron: relu}"
    first, second = str(tmp_path / "relu"), str(tmp_path / "qcfs")
    assert main(["train", "--out", first, model, *options]) == 0
    convert = "{name: relu_to_qcfs, options: {levels: 4}}"
    begun = parts(
        start={"run": first, "convert": {"name": "relu_to_qcfs", "options": {"levels": 4}}},
        num_steps=1,
        model={"options": {"width": 4, "synapse": "float", "neuron": "relu"}},
    )
    assert [m.threshold.item() for m in begun.net.modules() if hasattr(m, "levels")] == [1.0] * 3, (
        "a rehearsal has no data"
    )
    small_lr = "--train.optimizer={name: sgd, options: {lr: 1e-9, momentum: 0.0, nesterov: false}}"
    start = [f"--start.run={first}", "--start.convert", convert]
    assert main(["train", "--out", second, model, *options, *start, small_lr]) == 0
    thresholds = [m.threshold.item() for m in networks.open_run(second)[1].net.modules() if hasattr(m, "levels")]
    assert len(thresholds) == 3 and all(t > 0 and t != 1.0 for t in thresholds)
    lmh = str(tmp_path / "lmh")
    start = [f"--start.run={second}", "--start.convert=qcfs_to_lmh"]
    assert main(["train", "--out", lmh, model, *options, *start]) == 0
    nodes = [m for m in networks.open_run(lmh)[1].net.modules() if isinstance(m, LMHNode)]
    assert [node.v_threshold for node in nodes] == thresholds


def registry_with_relu(get):
    return lambda group, name: torch.nn.ReLU if (group, name) == ("neurons", "relu") else get(group, name)


def test_eval_of_an_ann_by_steps_needs_both(ann, capsys):
    assert main(["eval", str(ann), "--convert", "qcfs_to_lmh"]) == 2
    assert "--convert needs --steps" in capsys.readouterr().err
    assert main(["eval", str(ann), "--steps=0"]) == 2
    assert "steps=0 is not a whole number of at least 1" in capsys.readouterr().err


def test_eval_by_steps_names_what_has_no_more_steps(run_dir, capsys):
    assert main(["eval", str(run_dir), "--steps=3"]) == 2
    assert "num_steps=2: EMPFNode is asked to run step 3" in capsys.readouterr().err
    assert main(["eval", str(run_dir), "--convert", "qcfs_to_lmh", "--steps=2"]) == 2
    assert "conversion qcfs_to_lmh: net=Sequential: nothing inside it to replace" in capsys.readouterr().err
