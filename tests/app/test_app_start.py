"""Runs that begin from other runs."""

import pytest
from tinyrecipe import parts

from sj_online.app import networks
from sj_online.app.cli import main
from sj_online.app.rehearse import rehearse
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
