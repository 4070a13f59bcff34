"""Quantised weights are kept while the weight stays: when they are made anew, and what never sees them."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize

from sj_online.layer import BinaryConv2d, BinaryLinear, TernaryConv2d, TernaryLinear, quantizer
from sj_online.layer.quantized import forget

LAYERS = {
    "binary conv": lambda: BinaryConv2d(3, 4, 3),
    "ternary conv": lambda: TernaryConv2d(3, 4, 3),
    "binary linear": lambda: BinaryLinear(6, 4),
    "ternary linear": lambda: TernaryLinear(6, 4),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def synapse(request):
    torch.manual_seed(0)
    made = request.param()
    nn.init.normal_(made.weight)
    return made


@pytest.fixture
def made(monkeypatch):
    """How often levels were looked for."""
    calls = []
    for name in ("binary_levels", "ternary_levels"):
        levels = getattr(quantizer, name)
        monkeypatch.setattr(quantizer, name, lambda weight, levels=levels: calls.append(weight) or levels(weight))
    return calls


def x(synapse, dtype=torch.float32):
    torch.manual_seed(1)
    shape = (2, 6) if isinstance(synapse, nn.Linear) else (2, 3, 5, 5)
    return torch.randn(shape).to(dtype)


def fresh(synapse, inputs):
    """What a layer that has kept nothing gives, with these weights."""
    other = copy.deepcopy(synapse)
    assert "_kept" not in vars(other)
    return other(inputs)


def swap_memory_twice(synapse):
    """Through ``.data``: the first memory would be free for the second change to get again."""
    for _ in range(2):
        synapse.weight.data = synapse.weight.data - 1


def column_major(weight):
    return weight.view(weight.shape[::-1]).permute(*reversed(range(weight.dim())))


SEEN = {
    "in place": lambda s: nn.init.normal_(s.weight),
    "through an alias": lambda s: s.weight.detach().sub_(1),
    "another parameter": lambda s: setattr(s, "weight", nn.Parameter(s.weight.detach() - 1)),
    "other memory": lambda s: setattr(s.weight, "data", s.weight.data - 1),
    "other memory, twice": swap_memory_twice,
    "other strides": lambda s: setattr(s.weight, "data", column_major(s.weight.data)),
    "half of it": lambda s: setattr(s.weight, "data", s.weight.data[:2]),
    "load_state_dict": lambda s: s.load_state_dict({"weight": s.weight.detach() - 1}),
}
HIDDEN = {
    "train": lambda s: nn.Sequential(s).train(),
    "eval": lambda s: nn.Sequential(s).eval(),
    "load_state_dict": lambda s: nn.Sequential(s).load_state_dict({"0.weight": s.weight}),
    "load_state_dict, without it": lambda s: nn.Sequential(s).load_state_dict({}, strict=False),
    "to": lambda s: nn.Sequential(s).to(torch.float32),
    "forget": lambda s: forget(nn.Sequential(s)),
    "any optimizer's step": lambda s: torch.optim.SGD([nn.Parameter(torch.zeros(1))]).step(),
}


@pytest.mark.parametrize("grad", [True, False])
def test_a_weight_that_stays_is_quantised_once(synapse, made, grad):
    with torch.set_grad_enabled(grad):
        first, again = synapse(x(synapse)), synapse(x(synapse))
    assert len(made) == 1 and torch.equal(first, again) and torch.equal(first, fresh(synapse, x(synapse)))


@pytest.mark.parametrize("write", SEEN.values(), ids=SEEN)
def test_a_change_of_the_weight_is_seen(synapse, write):
    before = synapse(x(synapse))
    with torch.no_grad():
        write(synapse)
    after = synapse(x(synapse))
    assert torch.equal(after, fresh(synapse, x(synapse)))
    assert after.shape != before.shape or not torch.equal(after, before)


@pytest.mark.parametrize("drop", HIDDEN.values(), ids=HIDDEN)
def test_a_write_that_torch_does_not_count_is_seen_when_what_is_kept_is_dropped(synapse, drop):
    before = synapse(x(synapse))
    synapse.weight.data.sub_(1)
    assert torch.equal(synapse(x(synapse)), before), "the control: such a write alone is not seen"
    drop(synapse)
    after = synapse(x(synapse))
    assert torch.equal(after, fresh(synapse, x(synapse))) and not torch.equal(after, before)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_with_an_update_at_every_step_is_what_it_is_without(synapse, optimizer, options):
    plain = copy.deepcopy(synapse)
    plain.quantised = plain.quantize
    start = synapse.weight.detach().clone()
    for net in (synapse, plain):
        optim = optimizer(net.parameters(), lr=0.3, **options)
        for _ in range(4):
            net(x(net)).square().sum().backward()
            optim.step()
            optim.zero_grad()
    assert torch.equal(synapse.weight, plain.weight) and not torch.equal(synapse.weight, start)


def test_the_gradient_has_the_mask_of_its_own_call(synapse):
    losses = []
    for scale in (1.0, 3.0):
        synapse.weight = nn.Parameter(synapse.weight.detach() * scale)
        losses += [(synapse.weight, synapse(x(synapse)).sum()), (synapse.weight, synapse(x(synapse)).sum())]
    for weight, loss in losses:
        (grad,) = torch.autograd.grad(loss, weight)
        assert torch.equal(grad == 0, weight.abs() > 1) and 0 < (grad == 0).sum() < grad.numel()


def test_a_weight_written_between_forward_and_backward_is_an_error(synapse):
    loss = synapse(x(synapse)).sum()
    with torch.no_grad():
        synapse.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_pickles_and_state_dicts_hold_nothing_of_it(synapse):
    clean = pickle.dumps(synapse)
    synapse(x(synapse))
    assert synapse._kept is not None
    assert len(pickle.dumps(synapse)) == len(clean) and set(synapse.state_dict()) == {"weight"}
    for other in (copy.deepcopy(synapse), copy.copy(synapse), pickle.loads(pickle.dumps(synapse))):
        assert other._kept is None and torch.equal(other(x(synapse)), synapse(x(synapse)))
    replica = synapse._replicate_for_data_parallel()
    replica.weight, replica.bias = synapse.weight.detach() - 1, None
    assert torch.equal(replica(x(synapse)), fresh(replica, x(synapse)))


def test_what_is_saved_for_backward_is_one_tensor_however_often_the_layer_runs(synapse):
    def saved():
        memory = {}
        with saved_tensors_hooks(lambda t: memory.__setitem__(t.data_ptr(), t) or t, lambda t: t):
            outputs = [synapse(inputs) for _ in range(3)]
        assert len(outputs) == 3
        return {pointer for pointer, t in memory.items() if t.shape in (synapse.weight.shape, synapse.weight.mT.shape)}

    inputs = x(synapse).requires_grad_()
    assert len(saved()) == 2
    synapse.quantised = synapse.quantize
    assert len(saved()) == 4, "the control: a weight for each call, and the latent one"


def test_inference_mode_and_no_grad_before_training(synapse):
    for context in (torch.inference_mode(), torch.no_grad()):
        forget(synapse)
        with context:
            first = synapse(x(synapse))
        out = synapse(x(synapse))
        assert torch.equal(out, first) and torch.autograd.grad(out.sum(), synapse.weight)[0].any()
    with torch.inference_mode():
        synapse.weight = nn.Parameter(synapse.weight.detach().clone())  # counts no versions
        first = synapse(x(synapse))
        synapse.weight.sub_(1)
        assert not torch.equal(synapse(x(synapse)), first)


def test_autocast_casts_what_is_kept(synapse, made):
    expected = fresh(synapse, x(synapse))
    del made[:]
    with torch.autocast("cpu", torch.bfloat16):
        first, again = synapse(x(synapse)), synapse(x(synapse))
    assert first.dtype == torch.bfloat16 and torch.equal(first, again)
    torch.testing.assert_close(first.float(), expected, rtol=0.02, atol=0.05)
    assert torch.equal(synapse(x(synapse)), expected) and len(made) == 1


def test_meta_and_half_weights(synapse):
    meta = copy.deepcopy(synapse).to("meta")
    assert meta(x(synapse).to("meta")).is_meta and meta(x(synapse).to("meta")).is_meta
    synapse(x(synapse))
    assert synapse.bfloat16()(x(synapse, torch.bfloat16)).dtype == torch.bfloat16


def test_a_parametrised_weight_is_quantised_anew(synapse, made):
    class Shifted(nn.Module):
        def forward(self, weight):
            return weight - shift

    shift = 0.0
    synapse(x(synapse))
    parametrize.register_parametrization(synapse, "weight", Shifted())
    del made[:]
    first = synapse(x(synapse))
    shift = 1.0
    second = synapse(x(synapse))
    assert len(made) == 2 and not torch.equal(first, second)
    (grad,) = torch.autograd.grad(second.sum(), synapse.parametrizations.weight.original)
    assert torch.equal(grad == 0, synapse.weight.abs() > 1)


def test_transforms_of_functions_keep_nothing_of_theirs(synapse):
    inputs = x(synapse)
    parameters = dict(synapse.named_parameters())

    def loss(parameters, one):
        return torch.func.functional_call(synapse, parameters, (one[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, inputs)["weight"]
    for grad, one in zip(grads, inputs, strict=True):
        (expected,) = torch.autograd.grad(synapse(one[None]).square().sum(), synapse.weight)
        torch.testing.assert_close(grad, expected)
    forget(synapse)
    torch.func.grad(lambda inputs: synapse(inputs).sum())(inputs)
    torch.func.vmap(lambda one: synapse(one[None]))(inputs)
    assert synapse._kept is None
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs, inputs)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(synapse(dual)).tangent, synapse(inputs))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_traces_and_fakes_keep_nothing(synapse):
    inputs = x(synapse)
    synapse(inputs)
    compiled = torch.compile(synapse, fullgraph=True, backend="aot_eager")
    traced = torch.jit.trace(synapse, inputs)
    exported = torch.export.export(synapse, (inputs,)).module()
    for run in (compiled, traced):
        assert torch.equal(run(inputs), synapse(inputs))
        synapse.weight.data.sub_(1)  # a constant in the graph would not change
        assert torch.equal(run(inputs), fresh(synapse, inputs))
        forget(synapse)
    exported.weight.data.sub_(2)
    assert torch.equal(exported(inputs), synapse(inputs))
    forget(synapse)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        synapse(mode.from_tensor(inputs))
    assert type(synapse(inputs)) is torch.Tensor and torch.equal(synapse(inputs), fresh(synapse, inputs))


def test_a_write_while_the_weight_is_quantised_is_seen_at_the_next_call(synapse):
    def slow(weight, *kept):
        made = quantize(weight, *kept)
        if writes:
            writes.pop()(weight)
        return made

    quantize, synapse.quantize = synapse.quantize, slow
    for write in (nn.init.normal_, lambda _: torch.optim.SGD([nn.Parameter(torch.zeros(1))]).step()):
        forget(synapse)
        writes = [write]
        synapse(x(synapse))
        synapse.weight.data.sub_(1)
        assert not writes and torch.equal(synapse(x(synapse)), fresh(synapse, x(synapse)))


def test_threads_that_share_a_layer(synapse):
    weights = [synapse.weight, nn.Parameter(synapse.weight.detach() - 1)]
    expected = [synapse.quantize(weight) for weight in weights]
    assert not torch.equal(*expected)

    def work(first):
        for turn in range(first, first + 50):
            assert torch.equal(synapse.quantised(weights[turn % 2]), expected[turn % 2])
            if turn % 5 == 0:
                forget(synapse)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
