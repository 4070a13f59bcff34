from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import rotate

from sj_online.data import Augmented
from sj_online.data.augment import (
    Cutout,
    Flip,
    PadAndCrop,
    Roll,
    RollRotateCutout,
    Rotate,
    auto_augment,
    cutmix,
    mixup,
    mixup_or_cutmix,
)

IMAGE = torch.arange(1, 3 * 6 * 5 + 1, dtype=torch.uint8).view(3, 6, 5)
FRAMES = (torch.arange(4 * 2 * 12 * 12.0) + 1).view(4, 2, 12, 12)
ITEM = [PadAndCrop(2), Flip(), Roll(2), Rotate(), Cutout(4), RollRotateCutout()]


def draws(transform, x, count=400):
    torch.manual_seed(0)
    return [transform(x) for _ in range(count)]


def key(x):
    return tuple(x.flatten().tolist())


@pytest.mark.parametrize("transform", ITEM, ids=repr)
def test_all_steps_get_the_same_draw(transform):
    same = FRAMES[:1].expand(4, -1, -1, -1)
    for x in draws(transform, same, 20):
        assert x.shape == same.shape and all(x[0].equal(step) for step in x)


@pytest.mark.parametrize("transform", ITEM, ids=repr)
def test_kind_and_shape_stay_and_the_data_are_left_alone(transform):
    before = IMAGE.clone()
    seen = draws(transform, IMAGE, 30)
    assert {(x.dtype, x.shape) for x in seen} == {(torch.uint8, IMAGE.shape)} and IMAGE.equal(before)
    assert len({key(x) for x in seen}) > 1


@pytest.mark.parametrize("transform", [*ITEM, mixup(3)], ids=lambda transform: type(transform).__name__)
def test_a_transform_cannot_be_changed(transform):
    for name in vars(transform):
        with pytest.raises(FrozenInstanceError):
            setattr(transform, name, 1)


def test_pad_and_crop_is_every_shift_with_zeros():
    padded = F.pad(IMAGE, (2, 2, 2, 2))
    expected = {key(padded[:, top : top + 6, left : left + 5]) for top in range(5) for left in range(5)}
    assert {key(x) for x in draws(PadAndCrop(2), IMAGE)} == expected
    assert PadAndCrop(0)(IMAGE).equal(IMAGE) and PadAndCrop().padding == 4
    far = {int(x.sum()) for x in draws(PadAndCrop(20), IMAGE, 200)}
    assert 0 in far and len(far) > 3


def test_flip():
    flipped = sum(x.equal(IMAGE.flip(-1)) for x in draws(Flip(), IMAGE))
    assert 160 < flipped < 240
    assert 60 < sum(not x.equal(IMAGE) for x in draws(Flip(0.2), IMAGE)) < 100
    assert Flip(0)(IMAGE).equal(IMAGE) and Flip(1)(IMAGE).equal(IMAGE.flip(-1))


def test_roll():
    expected = {key(IMAGE.roll((a, b), (1, 2))) for a in range(-2, 3) for b in range(-2, 3)}
    assert {key(x) for x in draws(Roll(2), IMAGE)} == expected and Roll().pixels == 5


def test_rotate():
    torch.manual_seed(3)
    draw = torch.rand(()).item()
    torch.manual_seed(3)
    assert Rotate(40)(FRAMES).equal(rotate(FRAMES, (2 * draw - 1) * 40))
    assert Rotate(0)(FRAMES).equal(FRAMES) and Rotate().degrees == 30
    moved = [(x[0, 0] != FRAMES[0, 0]).float().mean().item() for x in draws(Rotate(90), FRAMES, 50)]
    assert max(moved) > 0.9 and min(moved) < 0.7


def test_cutout_is_a_square_with_its_middle_anywhere():
    x = torch.ones(2, 3, 9, 7)
    tops, lefts = {}, {}
    for out in draws(Cutout(4), x, 2000):
        hole = out[0, 0] == 0
        assert (out == out[:1, :1]).all()
        rows, columns = hole.any(1).nonzero().flatten().tolist(), hole.any(0).nonzero().flatten().tolist()
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        tops[rows[0], len(rows)] = lefts[columns[0], len(columns)] = True
    assert set(tops) == {(0, 2), (0, 3), *((top, 4) for top in range(6)), (6, 3)}
    assert set(lefts) == {(0, 2), (0, 3), *((left, 4) for left in range(4)), (4, 3)}


def test_cutout_sizes_and_values():
    x = torch.full((3, 12, 12), 9, dtype=torch.uint8)
    assert max(int((out == 0).sum()) for out in draws(Cutout(1 / 3), x)) == 3 * 16
    assert {int((out == 0).sum()) for out in draws(Cutout(1), x, 30)} == {3}
    assert {int((out == 0).sum()) for out in draws(Cutout(1, holes=2), x, 300)} == {3, 6}
    for out in draws(Cutout(24, fill=(1, 2, 3)), x, 10):
        assert out[:, 6, 6].tolist() == [1, 2, 3]
    assert (Cutout(24, fill=7)(torch.ones(2, 3, 12, 12)) == 7).any()
    assert Cutout() == Cutout(length=16, holes=1, fill=0)


def test_one_of_three_is_drawn():
    transform = RollRotateCutout(2, 10, 0.25)
    assert transform.choices == (Roll(2), Rotate(10), Cutout(0.25))
    assert RollRotateCutout().choices == (Roll(5), Rotate(30), Cutout(1 / 3))
    object.__setattr__(transform, "choices", tuple(lambda x, k=k: k for k in range(3)))
    seen = draws(transform, None, 300)
    assert all(70 < seen.count(k) < 130 for k in range(3))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PadAndCrop(-1), "padding=-1 must be at least 0"),
        (lambda: Flip(1.5), "p=1.5 must be from 0 to 1"),
        (lambda: Flip(-0.5), "p=-0.5 must be"),
        (lambda: Roll(-1), "pixels=-1 must be at least 0"),
        (lambda: Cutout(0), "length=0 must be a number of pixels or a part below 1"),
        (lambda: Cutout(2.5), "length=2.5 must be"),
        (lambda: Cutout(1.5), "length=1.5 must be"),
        (lambda: Cutout(4, holes=0), "holes=0 must be at least 1"),
        (lambda: auto_augment("cifar"), "policy='cifar' is not one of imagenet, cifar10, svhn"),
        (lambda: mixup(3, alpha=0), "mixup alpha=0 and cutmix alpha=0"),
        (lambda: cutmix(3, alpha=-1), "cutmix alpha=-1"),
        (lambda: mixup_or_cutmix(3, mixup_alpha=-1), "mixup alpha=-1"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    assert Roll(0)(IMAGE).equal(IMAGE)


def test_auto_augment_draws_from_the_seed_of_the_item():
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    data = Augmented([(image, 0)], [auto_augment()], seed=0)
    seen = [data[epoch, 0][0] for epoch in range(10)]
    assert seen[4].equal(data[4, 0][0]) and len({key(x) for x in seen}) > 4
    assert seen[0].dtype == torch.uint8 and auto_augment().policy.value == "cifar10"
    assert auto_augment("imagenet").policy.value == "imagenet"


def test_mixup_mixes_images_and_targets_alike():
    x = torch.eye(3).view(3, 3, 1, 1)  # item i is 1 in channel i: its mixture can be read off
    torch.manual_seed(0)
    mixed, y = mixup(3)(x, torch.arange(3))
    assert torch.allclose(mixed.flatten(1), y) and torch.allclose(y.sum(1), torch.ones(3))
    assert ((y > 0).sum(1) == 2).all()


def test_mixup_of_sequences_gives_all_steps_the_same_mixture():
    x = torch.eye(3).view(1, 3, 3, 1, 1) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1)
    torch.manual_seed(0)
    mixed, y = mixup(3, 2)(x, torch.arange(3))
    assert mixed.shape == x.shape
    assert torch.allclose(mixed[0].flatten(1), y) and torch.allclose(mixed[1].flatten(1), 2 * y)


def test_cutmix_targets_go_by_the_area():
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 20, 20)
    torch.manual_seed(1)
    for sequences in (False, True):
        mix = cutmix(4, 1 if sequences else None)
        mixed, y = mix(x[None] if sequences else x, torch.arange(4))
        mixed = mixed[0] if sequences else mixed
        for k in range(4):
            shares = torch.stack([(mixed[k] == c).float().mean() for c in range(4)])
            assert torch.allclose(shares, y[k], atol=1e-6)
        assert 0 < y.max() < 1


def test_one_of_two_mixtures_is_drawn_a_batch():
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 20, 20)
    transform = mixup_or_cutmix(4)
    assert [(type(mix).__name__, mix.alpha) for mix in transform.mixes] == [("MixUp", 0.8), ("CutMix", 1.0)]
    torch.manual_seed(0)
    cut = [
        all(len(image.unique()) <= 2 and (image == image.round()).all() for image in transform(x, torch.arange(4))[0])
        for _ in range(100)
    ]
    assert 30 < sum(cut) < 70
    assert [type(mix).__name__ for mix in mixup(4).mixes + cutmix(4).mixes] == ["MixUp", "CutMix"]
    assert (mixup(4).mixes[0].alpha, cutmix(4).mixes[0].alpha) == (0.8, 1.0)
