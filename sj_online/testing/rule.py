"""Conformance checks of a training rule."""

import copy
import pickle
from collections.abc import Callable

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from sj_online.analysis.memory import SavedBytes
from sj_online.trainer import Rule

Factory = Callable[..., Rule]
T, N, CLASSES = 6, 4, 3


def check_rule(factory: Factory) -> None:
    """Check that a rule keeps the contract of all rules, and is what it declares: exact or approximate.

    Args:
        factory: ``factory(net, optimizer, num_steps=None)`` returns the rule, usually its class.

    Raises:
        AssertionError: names the check that failed.

    Example:
        >>> from sj_online.trainer import SLTT
        >>> check_rule(SLTT)
    """
    for check in CHECKS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                check(factory)
            except Exception as error:
                raise AssertionError(f"check_rule: {check.__name__}: {error}") from error


def _network() -> nn.Sequential:
    """Three linear layers and two layers of neurons, float64, with weights that make the neurons fire."""
    node = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}
    net = nn.Sequential(
        layer.Linear(8, 6), neuron.LIFNode(**node), layer.Linear(6, 5), neuron.LIFNode(**node), layer.Linear(5, CLASSES)
    )
    for module in net:
        if isinstance(module, layer.Linear):
            nn.init.normal_(module.weight, 0.3, 0.5)
    return net.double()


def _batch(steps: int = T) -> tuple[Tensor, Tensor]:
    return torch.rand(steps, N, 8, dtype=torch.float64), torch.randint(CLASSES, (N,))


def _rule(factory: Factory, net: nn.Module, num_steps: int | None = None) -> Rule:
    return factory(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), num_steps=num_steps)


def _gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def _rule_gradient(factory: Factory, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    net.zero_grad()
    for _ in _rule(factory, net).gradients(x, y):
        pass
    return _gradient(net)


def _bptt_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    net.zero_grad()
    functional.reset_net(net)
    torch.stack([F.cross_entropy(net(x_t), y) for x_t in x]).mean().backward()
    return _gradient(net)


def one_step_equals_backpropagation(factory: Factory) -> None:
    """With T=1 there is no time to cut."""
    net, (x, y) = _network(), _batch(1)
    torch.testing.assert_close(_rule_gradient(factory, net, x, y), _bptt_gradient(net, x, y), rtol=0, atol=1e-12)


def is_exact_or_approximate_as_declared(factory: Factory) -> None:
    """The gradient of T steps has the direction of backpropagation through time, or has not."""
    net, (x, y) = _network(), _batch()
    ours, oracle = _rule_gradient(factory, net, x, y), _bptt_gradient(net, x, y)
    distance = (ours / ours.norm() - oracle / oracle.norm()).abs().max().item()
    exact = _rule(factory, net).exact
    assert (distance < 1e-12) == exact, f"declared exact={exact}, but {distance=:.1e} from BPTT's direction"


def adds_to_gradients(factory: Factory) -> None:
    """``gradients`` adds to what is in ``.grad``."""
    net, (x, y) = _network(), _batch(1)
    once = _rule_gradient(factory, net, x, y)
    for _ in _rule(factory, net).gradients(x, y):
        pass
    torch.testing.assert_close(_gradient(net), 2 * once)


def memory_is_bounded_by_the_horizon(factory: Factory) -> None:
    """Bytes saved for backward do not depend on T beyond the horizon; without a horizon they grow."""
    peaks = []
    for steps in (8, 32):
        net, (x, y) = _network(), _batch(steps)
        rule = _rule(factory, net)
        with SavedBytes(exclude=[x, *net.parameters()]) as saved:
            rule.train_step(x, y)
        peaks.append(saved.peak)
    assert (peaks[0] == peaks[1]) == (rule.horizon is not None), f"saved bytes {peaks} at T=8 and 32, {rule.horizon=}"


def result_is_detached_and_complete(factory: Factory) -> None:
    """``train_step`` returns a scalar loss and the mean output, and changes every parameter."""
    net, (x, y) = _network(), _batch()
    before = [p.detach().clone() for p in net.parameters()]
    result = _rule(factory, net).train_step(x, y)
    assert result.loss.shape == () and result.output.shape == (N, CLASSES), "shapes of the result"
    assert not result.loss.requires_grad and not result.output.requires_grad, "the result holds a graph"
    assert all((p != old).any() for p, old in zip(net.parameters(), before, strict=True)), "a parameter has not moved"


def static_input_equals_its_repetition(factory: Factory) -> None:
    """``num_steps=T`` with ``[N, ...]`` is the sequence of T copies."""
    x, y = _batch(1)
    net = _network()
    losses, parameters = [], []
    for inputs, num_steps in ((x[0], T), (x.expand(T, *x.shape[1:]), None)):
        twin = copy.deepcopy(net)
        torch.manual_seed(1)
        losses.append(_rule(factory, twin, num_steps).train_step(inputs, y).loss)
        parameters.append(nn.utils.parameters_to_vector(twin.parameters()))
    assert losses[0] == losses[1] and (parameters[0] == parameters[1]).all(), "the two differ"


def multi_step_equals_single_step(factory: Factory) -> None:
    """A network in step mode 'm' trains as the same network in 's'."""
    net, (x, y) = _network(), _batch()
    gradients = []
    for mode in ("s", "m"):
        functional.reset_net(net)
        functional.set_step_mode(net, mode)
        torch.manual_seed(1)
        gradients.append(_rule_gradient(factory, net, x, y))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def leaves_the_network_as_it_was(factory: Factory) -> None:
    """Outside ``train_step`` the network computes, saves and pickles as without the rule; ``close`` clears it."""
    net, (x, y) = _network(), _batch()
    names, members = list(net.state_dict()), [set(vars(module)) for module in net.modules()]
    rule = _rule(factory, net)
    rule.train_step(x, y)
    twin = _network()
    twin.load_state_dict(net.state_dict())
    functional.reset_net(net)
    with torch.no_grad():
        assert all((net(x_t) == twin(x_t)).all() for x_t in x), "the network computes something else"
    assert list(net.state_dict()) == names, "state_dict has other names"
    pickle.dumps(copy.deepcopy(net))
    rule.close()
    assert [set(vars(module)) for module in net.modules()] == members, "close() leaves something in a module"


def predicts_in_eval_mode(factory: Factory) -> None:
    """``predict`` is the mean output in eval mode, and restores the training mode."""
    net = nn.Sequential(layer.Dropout(0.5), *_network())
    net[1].eval()
    x, _ = _batch()
    with SavedBytes() as saved:
        output = _rule(factory, net).predict(x)
    assert saved.peak == 0 and not output.requires_grad, "predict builds a graph"
    assert net.training and not net[1].training, "training modes are not restored"
    net.eval()
    functional.reset_net(net)
    torch.testing.assert_close(output, torch.stack([net(x_t) for x_t in x]).mean(0).detach())


def resumes_from_state_dict(factory: Factory) -> None:
    """A run continued from the saved states goes on as one that was not interrupted."""
    x, y = _batch()
    net = _network()
    rule = _rule(factory, net)
    rule.train_step(x, y)
    resumed_net = copy.deepcopy(net)
    resumed = _rule(factory, resumed_net)
    resumed.optimizer.load_state_dict(copy.deepcopy(rule.optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(rule.state_dict()))
    for each in (rule, resumed):
        torch.manual_seed(1)
        each.train_step(x, y)
    vectors = [nn.utils.parameters_to_vector(each.parameters()) for each in (net, resumed_net)]
    assert (vectors[0] == vectors[1]).all(), "the resumed run differs"


def says_what_it_is(factory: Factory) -> None:
    """The rule names its paper, and its table every synapse."""
    net, (x, y) = _network(), _batch()
    rule = _rule(factory, net)
    rule.train_step(x, y)
    text = repr(rule)
    assert rule.paper and rule.paper in text, "no paper in print(rule)"
    missing = [
        name for name, module in net.named_modules() if isinstance(module, nn.Linear) and f" {name} " not in text
    ]
    assert not missing, f"synapses {missing} are not in print(rule)"


CHECKS: tuple[Callable[[Factory], None], ...] = (
    one_step_equals_backpropagation,
    is_exact_or_approximate_as_declared,
    adds_to_gradients,
    memory_is_bounded_by_the_horizon,
    result_is_detached_and_complete,
    static_input_equals_its_repetition,
    multi_step_equals_single_step,
    leaves_the_network_as_it_was,
    predicts_in_eval_mode,
    resumes_from_state_dict,
    says_what_it_is,
)
