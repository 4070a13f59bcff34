import torch
from sklearn.datasets import load_digits

from sj_online.data import Images, digits


def test_digits_are_split_without_overlap():
    splits = digits(shift=0)
    parts = [part.padded.flatten(1) for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [1077, 270, 450]
    images = torch.from_numpy(load_digits().data).float() / 16
    ours = sorted(image.tobytes() for image in torch.cat(parts).numpy())
    assert ours == sorted(image.tobytes() for image in images.numpy())


def test_digits_are_stratified_and_fixed():
    first, second = digits(), digits()
    for name in ("train", "val", "test"):
        part = getattr(first, name)
        assert part.labels.equal(getattr(second, name).labels)
        frequencies = part.labels.bincount(minlength=10) / len(part)
        assert torch.allclose(frequencies, first.labels.bincount() / 1797, atol=3e-3)


def test_only_training_images_are_shifted():
    splits = digits(shift=1)
    torch.manual_seed(0)
    assert len({splits.train[0][0].numpy().tobytes() for _ in range(100)}) == 9
    assert len({splits.test[0][0].numpy().tobytes() for _ in range(100)}) == 1


def test_shift_moves_zeros_in():
    image = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    shifted = Images(image, torch.tensor([0]), shift=1)
    torch.manual_seed(0)
    seen = {tuple(shifted[0][0].flatten().tolist()) for _ in range(100)}
    assert (1, 2, 3, 4) in seen
    assert (4, 0, 0, 0) in seen
    assert (0, 0, 0, 1) in seen
