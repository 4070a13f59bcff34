"""What is relied on of torch's and the host's private parts: each line fails here when one of them moves."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import base, functional, layer, memopt, monitor, neuron
from torch import nn
from torch.overrides import TorchFunctionMode

from sj_online import host
from sj_online.frames import Frames
from sj_online.neuron import EMPFNode
from sj_online.prediction import mixing


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


def test_memopt_wraps_in_what_is_called_checkpointed():
    inner = neuron.LIFNode()
    net = nn.Sequential(nn.Sequential(memopt.checkpoint_module(inner)), memopt.checkpoint_module(nn.Linear(2, 2)))
    assert host.checkpointed(net) == {net[0][0]: inner, net[1]: net[1]._checkpoint_wrapped_module}
    assert isinstance(net[1], host.CHECKPOINTED) and host.checkpointed(nn.Linear(2, 2)) == {}
    names = {host.shown(name) for name, _ in net.named_modules()}
    assert names == {"", "0", "0.0", "0.0.surrogate_function", "1"}
    assert {host.shown(name) for name, _ in net.named_parameters()} == {"1.weight", "1.bias"}


def test_a_wrapped_neuron_does_not_run_the_forward_of_its_instance():
    inner = neuron.LIFNode()
    wrapped = memopt.checkpoint_module(inner)
    inner.forward = None
    wrapped(torch.rand(1, 2))


def test_what_a_module_keeps_for_itself():
    module = neuron.LIFNode()
    assert {name for name, _ in host.attributes(nn.Linear(2, 2))} == {"in_features", "out_features"}
    assert {"_memories", "tau"} <= {name for name, _ in host.attributes(module)}
    assert {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "training"} <= host.INTERNAL
    module.step_mode, module.backend = "m", "torch"
    assert not {"_step_mode", "_backend", "step_mode"} & {name for name, _ in host.attributes(module)}


def test_memories_are_the_dict_itself():
    node = neuron.LIFNode()
    host.memories(node)["v"] = torch.ones(1)
    assert node.v.item() == 1.0 and host.memories(nn.Linear(2, 2)) == {}
    node.reset()
    assert node.v == 0.0


def test_reset_finds_what_came_later_where_the_host_does_not():
    net = nn.Sequential(neuron.LIFNode())
    functional.reset_net(net)
    net.append(neuron.LIFNode())
    net(torch.ones(1, 1))
    functional.reset_net(net)
    assert isinstance(net[1].v, torch.Tensor)  # the reason; where this fails the host needs no help any more
    host.reset(net)
    assert net[0].v == net[1].v == 0.0


def test_storage_is_shared_by_views_and_keeps_nothing_alive():
    x = torch.rand(4)
    assert host.storage(x) == host.storage(x[1:]) == host.storage(x.detach()) != host.storage(x.clone())
    kept = host.storage(torch.rand(3))
    assert kept.expired() and not host.storage(x).expired()
    assert host.storage(torch.rand(2, 2).to_sparse()) is None


def test_functions_written_in_python_can_be_opened():
    x, W = torch.rand(3, 1, 4), torch.rand(12, 4)
    attention = (x, x, x, 4, 1, W, None, None, None, False, 0.0, torch.rand(4, 4), None)
    with Seen() as seen:
        closed = F.multi_head_attention_forward(*attention)
    assert seen.calls == [F.multi_head_attention_forward]
    with Seen() as seen:
        opened = host.opened(F.multi_head_attention_forward)(*attention)
    assert F.linear in seen.calls
    assert torch.equal(closed[0], opened[0])
    p = torch.ones(1, requires_grad=True)
    with Seen() as seen:
        host.opened(torch.Tensor.backward)((2 * p).sum())
    assert torch.autograd.backward in seen.calls and torch.Tensor.backward not in seen.calls and p.grad.item() == 2
    p.grad = None
    with Seen() as seen:
        host.opened(torch.autograd.backward)((2 * p).sum())
    assert torch.autograd.backward not in seen.calls and p.grad.item() == 2


def test_hooks_of_what_is_saved_and_transforms_are_told():
    assert host.saving_hooks() is None and not host.transformed()
    hooks = (lambda t: t, lambda t: t)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        assert host.saving_hooks() == hooks
    seen = []
    torch.func.vmap(lambda x: (seen.append(host.transformed()), x)[1])(torch.rand(2))
    assert seen == [True]


def test_batch_norms_are_known_whatever_they_take():
    for norm in (nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2), layer.BatchNorm2d(2)):
        assert isinstance(norm, host.BATCH_NORMS)
    assert not isinstance(nn.LayerNorm(2), host.BATCH_NORMS)


def test_calls_without_modes_are_not_seen():
    with Seen() as seen, host.without_modes():
        F.linear(torch.rand(2, 2), torch.rand(2, 2))
    assert F.linear not in seen.calls


def test_random_states_are_put_back():
    device = torch.device("cpu")
    states = host.random_state(device)
    first = torch.rand(3)
    host.set_random_state(states, device)
    assert torch.equal(first, torch.rand(3))


def test_resets_are_seen_through_the_instance():
    net, seen = nn.Sequential(neuron.LIFNode(), nn.Linear(1, 1), EMPFNode()), []
    end = host.watch_resets(net, seen.append)
    functional.reset_net(net)
    assert seen == [net[0], net[2]]
    end()
    functional.reset_net(net)
    assert len(seen) == 2 and not any("reset" in vars(m) for m in net)


def test_monitors_do_not_record_what_is_unrecorded():
    net, seen = nn.Sequential(neuron.LIFNode()), []
    recorded = monitor.OutputMonitor(net, neuron.LIFNode)
    net[0].register_forward_hook(lambda *_: seen.append(1))
    with host.unrecorded(net):
        net(torch.ones(1, 1))
    assert not recorded.records and seen == [1]
    net(torch.ones(1, 1))
    assert len(recorded.records) == 1 and len(seen) == 2


@pytest.mark.parametrize("container", host.CONTAINERS)
def test_containers_are_those_whose_submodules_have_a_step_mode_of_their_own(container):
    assert container.__name__ in inspect.getsource(functional.set_step_mode) + inspect.getsource(layer)


def test_the_host_keeps_the_list_of_containers():
    net = nn.Sequential(layer.SeqToANNContainer(nn.Linear(2, 2)), layer.MultiStepContainer(neuron.LIFNode()))
    functional.set_step_mode(net, "m")
    assert net[1][0].step_mode == "s"


def built() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Layers and neurons of the host that some simple arguments build, and an input [T, N, ...] that they take."""
    shapes = [(4, 2, 3), (4, 2, 3, 5), (4, 2, 3, 4, 4), (4, 2, 3, 4, 4, 4)]
    arguments = [{}, {"step_mode": "m"}, {"T": 4}, {"k": 2}]
    positional = [(), (3,), (3, 3), (3, 3, 1), (4,), (4, 3), (2, 4)]
    found = {}
    for module in (layer, neuron):
        for name, cls in vars(module).items():
            steps = isinstance(cls, type) and issubclass(cls, base.StepModule) and issubclass(cls, nn.Module)
            if not steps or issubclass(cls, host.CONTAINERS):
                continue
            for args, kwargs in ((args, kwargs) for kwargs in arguments for args in positional):
                made = _that_runs(cls, args, kwargs, shapes)
                if made is not None:
                    found[name] = made
                    break
    return found


def _that_runs(cls, args, kwargs, shapes):
    for shape in shapes:
        try:
            made = cls(*args, **kwargs)
            functional.set_step_mode(made, "m")
            with torch.no_grad():
                out = made(torch.rand(shape))
            functional.reset_net(made)
            if isinstance(out, torch.Tensor) and out.shape[:2] == shape[:2]:
                return made, shape
        except Exception:  # another class, another signature
            continue
    return None


def mixes(net: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a step's output depends on how the steps are cut, which a plain state that is carried on does not do."""
    torch.manual_seed(0)
    x = 2 * torch.rand(shape)

    def outputs(k: int):
        functional.reset_net(net)
        torch.manual_seed(1)
        return torch.cat([net(part) for part in x.split(k)])

    try:
        with torch.no_grad():
            return not torch.allclose(outputs(4), outputs(1), rtol=1e-4, atol=1e-5)
    except Exception:  # not with one step
        return True


@pytest.mark.filterwarnings("ignore")
def test_layers_of_the_host_that_mix_time_are_known():
    """By running: in eval mode all that is random is quiet; in training, norms over the batch see every step anyhow."""
    modules = built()
    assert len(modules) > 40
    unknown = []
    for name, (net, shape) in modules.items():
        over_batch = any(isinstance(m, host.BATCH_NORMS) for m in net.modules())
        random = "Dropout" in name or "Noisy" in name or "DropConnect" in name
        modes = [False] if over_batch or random else [False, True]
        mixed = any(mixes(net.train(training), shape) for training in modes)
        if mixed and not isinstance(net, host.MIXES_TIME) and mixing(net, Frames(torch.rand(shape)), 1) is None:
            unknown.append(name)
    assert unknown == []
    assert any(mixes(net.eval(), shape) for net, shape in modules.values() if isinstance(net, host.MIXES_TIME))
