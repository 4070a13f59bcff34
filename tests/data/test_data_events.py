"""Tiny recordings in the real raw formats, through the host's own parsers."""

import sys

import numpy as np
import pytest
import torch
from event_files import frames_of, recording, write_cifar10_dvs, write_folder, write_gesture, write_n_mnist
from spikingjelly import datasets
from torch.utils.data import ConcatDataset

from sj_online.data import events as module
from sj_online.data.events import FrameBatch, cifar10_dvs, dvs_gesture, event_folder, first, n_mnist


def test_n_mnist(tmp_path):
    write_n_mnist(tmp_path)
    data = n_mnist(str(tmp_path), frames=4, validation=0.25)
    assert (data.classes, data.shape, data.steps) == (10, (2, 34, 34), 4)
    assert vars(n_mnist.describe(frames=4)).items() <= vars(data).items()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 10, 10]
    x, y = data.test[7]
    assert y == 7 and x.dtype == torch.float32 and x.equal(frames_of(recording(7, 34), 34, 4))
    batch, labels = data.collate([data.test[7], data.test[2]])
    assert batch.shape == (4, 2, 2, 34, 34) and batch[:, 0].equal(x) and labels.tolist() == [7, 2]
    learnt = ConcatDataset([data.train, data.validation])
    for digit in range(10):
        expected = {frames_of(recording(10 * index + digit, 34), 34, 4).numpy().tobytes() for index in range(4)}
        assert {x.numpy().tobytes() for x, y in learnt if y == digit} == expected
    assert sorted(y for _, y in data.validation) == list(range(10))


def test_dvs_gesture(tmp_path):
    write_gesture(tmp_path)
    data = dvs_gesture(str(tmp_path), frames=3, validation=0)
    assert (data.classes, data.shape, data.steps) == (11, (2, 128, 128), 3) and data.validation is None
    assert len(data.train) == len(data.test) == 11
    by_host = datasets.DVS128Gesture(str(tmp_path), train=False, data_type="frame", frames_number=3, split_by="number")
    for (x, y), (theirs, label) in zip(data.test, by_host, strict=True):
        assert x.equal(torch.from_numpy(theirs)) and y == label  # '10' before '2'
        gesture = int(by_host.classes[y])
        assert x.equal(frames_of(recording(gesture, 128), 128, 3))


def test_cifar10_dvs(tmp_path):
    write_cifar10_dvs(tmp_path)
    data = cifar10_dvs(str(tmp_path), frames=2)
    assert (data.classes, data.shape, data.steps) == (10, (2, 128, 128), 2)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [80, 10, 10]
    for label, (x, y) in enumerate(data.test):
        assert y == label and x.equal(frames_of(recording(100 * label + 9, 128), 128, 2))
    host = datasets.CIFAR10DVS(str(tmp_path), data_type="frame", frames_number=2, split_by="number")
    _, theirs = datasets.split_to_train_test_set(0.9, host, 10)
    assert all(x.equal(torch.from_numpy(other)) for (x, _), (other, _) in zip(data.test, theirs, strict=True))
    drawn = cifar10_dvs(str(tmp_path), frames=2, split="random", validation=0)
    assert len(drawn.train) == 90 and [y for _, y in drawn.test] == list(range(10))
    chosen = [x.numpy().tobytes() for x, _ in drawn.test]
    assert chosen != [x.numpy().tobytes() for x, _ in data.test]
    assert not set(chosen) & {x.numpy().tobytes() for x, _ in drawn.train}
    with pytest.raises(ValueError, match="split='last' is not one of first, random"):
        cifar10_dvs(str(tmp_path), split="last")


def test_cifar10_dvs_is_resized_and_normalised(tmp_path):
    write_cifar10_dvs(tmp_path, 2)
    options = {"frames": 2, "resize": 48, "validation": 0.5}
    plain, scaled = (cifar10_dvs(str(tmp_path), **options, **more) for more in ({}, {"mean": [0.5, 0], "std": (2, 4)}))
    assert plain.shape == cifar10_dvs.describe(**options).shape == (2, 48, 48)
    x, _ = plain.collate([plain.train[0]])
    y, _ = scaled.collate([plain.train[0]])
    assert x.shape == (2, 1, 2, 48, 48)
    assert torch.allclose(y[:, :, 0], (x[:, :, 0] - 0.5) / 2) and torch.allclose(y[:, :, 1], x[:, :, 1] / 4)


def test_a_folder_of_events(tmp_path):
    write_folder(tmp_path)
    options = {"classes": 2, "size": [10, 9], "frames": 5, "by": "time", "duration": 1000}
    data = event_folder(str(tmp_path), **options, validation=0.25)
    assert data.shape == event_folder.describe(**options).shape == (2, 10, 9)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 2, 4]
    assert [y for _, y in data.test] == [0, 0, 1, 1]
    t, *_ = recording(11, 9)
    assert data.test[3][0].sum((1, 2, 3)).tolist() == np.bincount((t - t.min()) // 1000, minlength=5)[:5].tolist()
    assert event_folder.describe(**options, resize=4).shape == (2, 4, 4)


def test_folders_that_are_not_as_said(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/train should hold a folder for each of 3 classes, and holds 2"):
        event_folder(str(tmp_path), classes=3, size=(10, 10))
    for path in (tmp_path / "test").glob("*/*.npz"):
        path.unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}/test holds no recordings"):
        event_folder(str(tmp_path), classes=2, size=(10, 10))
    with pytest.raises(ValueError, match="event_folder cannot be downloaded"):
        event_folder(str(tmp_path), classes=2, size=(10, 10), download=True)


@pytest.mark.parametrize("load", [dvs_gesture, n_mnist, cifar10_dvs])
def test_options_are_checked_before_anything_is_read(load):
    for options, message in [({"frames": 0}, "frames=0"), ({"by": "x"}, "by='x'"), ({"duration": 5}, "duration=5")]:
        with pytest.raises(ValueError, match=message):
            load("/nowhere", **options)
    assert load.describe(frames=7).steps == 7 and load.describe(resize=5).shape == (2, 5, 5)


def test_a_resize_is_done(tmp_path):
    write_n_mnist(tmp_path)
    write_gesture(tmp_path / "gesture")
    write_folder(tmp_path / "folder")
    assert n_mnist(str(tmp_path), resize=5).test[0][0].shape == (10, 2, 5, 5)
    assert dvs_gesture(str(tmp_path / "gesture"), resize=5).test[0][0].shape == (20, 2, 5, 5)
    made = event_folder(str(tmp_path / "folder"), classes=2, size=(9, 9), resize=5, by="time")
    assert made.test[0][0].shape == (10, 2, 5, 5)
    assert n_mnist(str(tmp_path), by="time", duration=1, frames=3).test[0][0].sum() < 60


def test_the_first_part_of_every_class_trains():
    labels = [1, 0, 0, 1, 0, 0, 1]
    train, test = first(labels, 0.5)
    assert (train, test) == ([1, 2, 0, 3], [4, 5, 6])


def test_frames_are_normalised_by_polarity():
    x, y = FrameBatch((0.0, 1.0), (1.0, 4.0))([(torch.full((3, 2, 1, 1), 5.0), 1)])
    assert x[0].flatten().tolist() == [5.0, 1.0] and y.tolist() == [1]


def test_the_host_is_imported_when_it_is_needed():
    assert not hasattr(module, "datasets") and "spikingjelly.datasets" in sys.modules
