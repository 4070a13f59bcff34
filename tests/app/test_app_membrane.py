"""The learnt parameters of the neurons in the metrics."""

import json

import pytest
import small
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.app.cli import main
from sj_online.app.loop import fit
from sj_online.app.membrane import learnt
from sj_online.neuron import EMPFNode, LMHNode


def test_natural_units_by_layer_and_step():
    net = nn.Sequential(
        EMPFNode(2, decay=0.3, threshold=0.4),
        nn.Sequential(LMHNode(), LMHNode(num_steps=2)),
        neuron.ParametricLIFNode(init_tau=4.0),
        neuron.LIFNode(),
        EMPFNode(learnable=False),
        EMPFNode(membrane_norm=3),
    )
    net[1][0].raw_lambda_s.data.fill_(1.0)
    net[1][1].raw_mu_d.data = torch.tensor([0.0, 2.0])
    found = dict(learnt(net))
    assert {name: found[name] for name in found if name.split("/")[1] in "023"} == pytest.approx(
        {"decay/0/1": 0.3, "decay/0/2": 0.3, "threshold/0/1": 0.4, "threshold/0/2": 0.4, "leak/2": 0.75}
    )
    assert found["lambda_s/1.0"] == pytest.approx(1 / (1 + torch.tensor(-1.0).exp().item()) + 0.5)
    assert found["mu_s/1.0"] == 0 and found["mu_d/1.1/1"] == 0
    assert found["mu_d/1.1/2"] == pytest.approx(0.3808, abs=1e-4)
    assert len([name for name in found if name.split("/")[1] == "1.1"]) == 8
    assert not any(name.split("/")[1] == "4" for name in found), "buffers are not learnt"


def test_of_many_numbers_the_mean():
    class Channels(neuron.LIFNode):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor([1.0, 2.0, 6.0]))

    assert dict(learnt(nn.Sequential(Channels()))) == {"gain/0": 3.0}


def network():
    return nn.Sequential(layer.Flatten(), layer.Linear(64, 16), LMHNode(), layer.Linear(16, 10))


def test_they_are_logged_at_each_epoch_and_not_printed(tmp_path, capsys):
    parts = small.parts(net=network)
    fit(parts, tmp_path)
    first, last = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    names = {f"{name}/2" for name in ("mu_d", "mu_s", "lambda_s", "lambda_d")}
    assert names <= first.keys() and any(first[name] != last[name] for name in names)
    assert {name: last[name] for name in names} == pytest.approx(dict(learnt(parts.net)))
    assert "lambda" not in capsys.readouterr().out


def test_a_run_of_the_default_recipe_has_them(run_dir):
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < line["decay/features.1/1"] < 1 and "threshold/features.4/2" in line


def test_eval_prints_the_accuracy_after_each_step(run_dir, capsys, tmp_path):
    assert main(["eval", str(run_dir), "--steps=2"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert main(["eval", str(run_dir)]) == 0
    accuracy = capsys.readouterr().out.split()[1]
    assert [row.split()[:3] for row in rows] == [["after", "1", "steps"], ["after", "2", "steps"]]
    values = [row.split()[3] for row in rows]
    assert values[1] == accuracy != values[0]
    best = f"best {max(values)} after {values.index(max(values)) + 1}"
    assert last == f"accuracy {accuracy} after 2 steps, {best} (450 test images of digits)"
