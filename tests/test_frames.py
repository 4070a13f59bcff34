"""An input over time: what is read of it, and one clear line for what cannot be."""

import numpy as np
import pytest
import torch

from sj_online.frames import Frames

T, N = 5, 3
X = torch.arange(T * N * 2.0).reshape(T, N, 2)
Y = torch.tensor([0, 2, 1])


def test_steps_and_windows_are_views_of_the_sequence():
    frames = Frames(X, Y, start=10)
    assert (frames.T, frames.N) == (T, N)
    for t in range(T):
        assert torch.equal(frames[10 + t], X[t])
    window = frames.window(range(11, 14))
    assert torch.equal(window, X[1:4]) and window.data_ptr() == X[1].data_ptr()


def test_a_static_input_is_every_step_and_is_not_repeated():
    frames = Frames(X[0], Y, num_steps=T)
    assert (frames.T, frames.N) == (T, N)
    assert torch.equal(frames[3], X[0]) and frames.window(range(4)).untyped_storage().nbytes() == X.nbytes
    assert torch.equal(frames.window(range(1, 4)), X[0].expand(3, N, 2))


def test_targets_are_shared_or_of_each_step():
    shared = Frames(X, Y).targets(range(1, 3))
    assert shared.each == [Y, Y] and shared.together() is Y and shared.mask is None
    per_step = torch.arange(T * N).reshape(T, N)
    targets = Frames(X, per_step, per_step_targets=True, start=10).targets(range(11, 13))
    assert torch.equal(torch.stack(targets.each), per_step[1:3]) and torch.equal(targets.together(), per_step[1:3])
    one = Frames(X, per_step, per_step_targets=True).targets(range(1))
    assert torch.equal(one.together(), per_step[:1]), "one step has a time axis too"


@pytest.mark.parametrize("make", [lambda a, b: {"a": a, "b": b}, lambda a, b: (a, b)])
def test_targets_of_each_step_in_containers_are_taken_by_time(make):
    a, b = torch.arange(T * N).reshape(T, N), torch.rand(T, N, 2)
    each = Frames(X, make(a, b), per_step_targets=True).targets(range(2, 4)).each
    for t, target in zip((2, 3), each, strict=True):
        values = target.values() if isinstance(target, dict) else target
        assert all(torch.equal(x, y[t]) for x, y in zip(values, (a, b), strict=True))
    with pytest.raises(ValueError, match=r"per_step_targets y has the shape \(5, 4\)"):
        Frames(X, make(a, torch.rand(T, N + 1)), per_step_targets=True)


def test_the_mask_goes_with_the_steps_and_says_which_count():
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]])
    frames = Frames(X, Y, mask=mask, start=10)
    assert frames.counts() == [True, False, True, True, False]
    assert torch.equal(frames.targets(range(11, 13)).mask, mask[1:3].bool())
    assert Frames(X, Y).counts() == [True] * T == Frames(X, X, per_step_targets=True).counts()


def test_a_stream_is_cut_into_windows_that_know_where_they_are():
    steps = [(X[t], Y if t % 2 else None) for t in range(T)]
    windows = list(Frames.of_stream(iter(steps), 2))
    assert [(w.start, w.T) for w in windows] == [(0, 2), (2, 2), (4, 1)]
    assert torch.equal(torch.cat([w.x for w in windows]), X)
    assert [w.counts() for w in windows] == [[False, True], [False, True], [False]]
    assert windows[1].targets(range(2, 4)).each == [None, Y] and torch.equal(windows[1][3], X[3])


def test_a_stream_takes_no_more_than_it_needs():
    taken = []
    windows = Frames.of_stream(((taken.append(t) or X[t], Y) for t in range(T)), 2)
    next(windows)
    assert taken == [0, 1]
    with pytest.raises(ValueError, match="x_t is a ndarray"):
        next(Frames.of_stream([(X[0].numpy(), Y)], 1))


def test_parts_are_of_the_sizes_that_are_asked_for():
    assert torch.equal(Frames(X, Y).first(2).x, X[:2]) and Frames(X[0], num_steps=T).first(9).T == T
    part = Frames(X, Y).part(2, 5)
    assert torch.equal(part.x, X[:2, [0, 1, 2, 0, 1]]) and part.y is None
    assert (Frames(X[0], num_steps=T).part(2, 2).x == X[0, :2]).all() and Frames(X[0], num_steps=T).part(7, 2).T == 7


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X.numpy(), Y, {}, r"x is a ndarray, not a tensor: give torch.as_tensor\(x\)"),
        (X.tolist(), Y, {}, "x is a list"),
        (X, Y.numpy(), {}, "y is a ndarray"),
        (X, np.int64(1), {}, "y is a int64"),
        (X, [0, 1, 2], {}, "y is a list"),
        (X, 1, {}, "y is a int"),
        (torch.tensor(1.0), Y, {}, "no time axis"),
        (X[0, 0], Y, {}, "no time axis"),
        (torch.tensor(1.0), Y, {"num_steps": 2}, "no batch axis"),
        (X[:0], Y, {}, "T=0 steps of N=3"),
        (X[:, :0], Y[:0], {}, "T=5 steps of N=0"),
        (X[0], Y, {}, r"has N=2, but y has 3 targets; is it \[N, ...\]\? give num_steps=T"),
        (X.transpose(0, 1), Y, {}, r"give x.transpose\(0, 1\)"),
        (X, torch.tensor(1), {}, "y has 0 targets"),
        (X, Y, {"mask": torch.ones(N, T)}, r"mask of shape \(3, 5\) is not \[T, N\] = \[5, 3\]"),
        (X, Y, {"mask": np.ones((T, N))}, "mask is a ndarray"),
        (X, Y, {"per_step_targets": True}, r"per_step_targets y has the shape \(3,\)"),
        (X, None, {"per_step_targets": True}, "y is a NoneType without a tensor"),
        (X, {"a": 1}, {"per_step_targets": True}, "y is a dict without a tensor"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(x, y, options, message):
    with pytest.raises(ValueError, match=message) as error:
        Frames(x, y, **options)
    assert "\n" not in str(error.value)


def test_what_a_loss_may_take_passes():
    for y in (None, {"any": 1}, (Y, "text"), object()):
        assert Frames(X, y).targets(range(1)).each == [y]
    assert Frames(X[:, :1], Y[:1]).N == 1
