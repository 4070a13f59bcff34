import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sj_online.data import Augmented, DataSet, EpochSampler, Shape, describes, own_draws, stack, stack_sequences
from sj_online.data.base import mix


def draws(x):
    """A transform that uses all three generators."""
    return torch.stack([x + torch.rand(()), torch.tensor(random.random()), torch.tensor(np.random.random())])


class Noisy(torch.utils.data.Dataset):
    """Draws by itself, too."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.rand(()).double(), index


@pytest.mark.parametrize("steps, default", [(None, stack), (3, stack_sequences)])
def test_how_items_become_a_batch_follows_from_the_steps_unless_said(steps, default):
    parts = {"classes": 2, "shape": (1,), "train": [], "validation": None, "test": []}
    assert DataSet(**parts, steps=steps).collate is default
    assert DataSet(**parts, steps=steps, collate=len).collate is len


def test_a_shape_is_said_by_name():
    assert Shape(classes=2, shape=(1,)) == Shape(classes=2, shape=(1,), steps=None, per_step_targets=False)
    with pytest.raises(TypeError):
        Shape(2, (1,))
    with pytest.raises(TypeError):
        DataSet(2, (1,), train=[], validation=None, test=[])
    with pytest.raises(TypeError):
        DataSet([], None, [], classes=2, shape=(1,))
    with pytest.raises(AttributeError):
        Shape(classes=2, shape=(1,)).classes = 3


def test_describe_takes_the_options_of_the_data_set_with_their_defaults():
    @describes(lambda size, steps: Shape(classes=3, shape=(size,), steps=steps))
    def made(root=None, *, download=False, size=4, steps, seed=0):
        raise AssertionError("describe loads nothing")

    assert made.describe("somewhere", steps=5, seed=3) == Shape(classes=3, shape=(4,), steps=5)
    assert made.describe(size=7, steps=None).shape == (7,)
    with pytest.raises(TypeError, match="sise"):
        made.describe(sise=3, steps=1)
    with pytest.raises(TypeError, match="steps"):
        made.describe()
    assert made.__name__ == "made"


def test_images_are_stacked():
    x, y = stack([(torch.full((1, 2, 2), k, dtype=torch.uint8), k) for k in (3, 4)])
    assert x.dtype == torch.float32 and x.shape == (2, 1, 2, 2)
    assert x[1].eq(4).all() and y.tolist() == [3, 4] and y.dtype == torch.long


def test_sequences_put_time_first():
    items = [(torch.arange(6.0).view(3, 2) + 10 * k, k) for k in range(4)]
    x, y = stack_sequences(items)
    assert x.shape == (3, 4, 2) and y.tolist() == [0, 1, 2, 3]
    assert x[2, 3].tolist() == [34, 35]
    x, y, mask = stack_sequences([(torch.ones(3, 2), torch.ones(3))])
    assert x.shape == (3, 1, 2) and y.shape == mask.shape == (3, 1)
    assert len(stack_sequences(items[:1])) == 2


def test_shorter_sequences_are_filled_up_and_masked():
    items = [
        (torch.ones(2, 1), torch.tensor([5, 6]), torch.tensor([False, True])),
        (torch.ones(4, 1), torch.tensor([1, 2, 3, 4]), torch.tensor([True, True, False, True])),
    ]
    x, y, mask = stack_sequences(items)
    assert x[..., 0].tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]
    assert y.tolist() == [[5, 1], [6, 2], [0, 3], [0, 4]]
    assert mask.tolist() == [[False, True], [True, True], [False, False], [False, True]]
    assert mask.dtype == torch.bool
    assert stack_sequences([item[:2] for item in items])[2].tolist() == [
        [True] * 2,
        [True] * 2,
        [False, True],
        [False, True],
    ]


def test_the_draws_of_an_item_depend_on_seed_epoch_and_index_alone():
    data = Augmented(Noisy(), [draws, lambda x: 2 * x], seed=1)
    places = [(2, 7), (0, 3), (2, 8)]
    together = [item[0] for item in data.__getitems__(places)]
    assert [item[1] for item in data.__getitems__(places)] == [7, 3, 8]
    for place, x in zip(places, together, strict=True):
        assert data[place][0].equal(x)
    others = [data[3, 7], data[2, 6], data[7, 2], Augmented(Noisy(), [draws], seed=2)[2, 7]]
    for x in [other[0] for other in others]:
        assert not (x == together[0]).any()
    assert together[0][1] < 2 and len(data) == 12


def test_what_follows_the_image_in_an_item_stays():
    data = Augmented([(torch.zeros(1), "target", "mask")], [lambda x: x + 1], seed=0)
    assert data[0, 0] == (torch.ones(1), "target", "mask")


def test_the_generators_of_the_process_are_left_alone():
    def state():
        return torch.rand(1).item(), random.random(), np.random.random()

    def reset():
        torch.manual_seed(5), random.seed(5), np.random.seed(5)

    reset()
    expected = state()
    reset()
    with pytest.raises(ZeroDivisionError), own_draws() as seed:
        seed(1, 2)
        inside = state()
        raise ZeroDivisionError
    assert state() == expected
    reset()
    Augmented(Noisy(), [draws], seed=0)[0, 0]
    assert state() == expected
    assert not set(inside) & set(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_workers_nor_a_resume_change_an_item(workers):
    data = Augmented(Noisy(), [draws], seed=4)

    def run(**options):
        loader = DataLoader(data, batch_sampler=EpochSampler(12, 4, seed=4, epoch=3, **options), num_workers=workers)
        return [(x.tolist(), y.tolist()) for x, y in loader]

    whole = run()
    by_hand = [data[3, index][0].tolist() for index in whole[1][1]]
    assert whole[1][0] == by_hand
    assert run(start_batch=1) == whole[1:]


def test_mix_depends_on_every_number_and_their_order():
    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from the state 0
    values = {mix(*numbers) for numbers in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (2**40, 0), (-1, 0)]}
    assert len(values) == 9 and all(0 <= value < 2**64 for value in values)
    low = [mix(0, 1, index) & 0xFFFFFFFF for index in range(20000)]
    assert len(set(low)) > 19990
