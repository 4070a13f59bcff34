import gzip
import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision.datasets
from sklearn.datasets import load_digits

from sj_online.data.images import ImageBatch, Images, cifar10, cifar100, digits, fashion_mnist, mnist


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, packed=False, sizes=(100, 20), side=28):
    """Random images whose first pixel is their number, in MNIST's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for prefix, count in zip(("train", "t10k"), sizes, strict=True):
        pixels = generator.integers(0, 256, (count, side, side))
        pixels[:, 0, 0] = range(count)
        files = {f"{prefix}-images-idx3-ubyte": pixels, f"{prefix}-labels-idx1-ubyte": np.arange(count) % 10}
        for name, array in files.items():
            path = folder / (name + ".gz" * packed)
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


def write_cifar(folder, monkeypatch, host, label="labels"):
    """CIFAR's pickles; torchvision compares checksums, so those of the made files are put in the place of its own."""
    folder = folder / host.base_folder
    folder.mkdir()
    checksums = {}

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        checksums[name] = hashlib.md5(data).hexdigest()

    generator = np.random.default_rng(0)
    for part, name in enumerate(name for name, _ in host.train_list + host.test_list):
        pixels = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        pixels[:, 1024] = part
        write(name, {"data": pixels, label: [i % 10 for i in range(20)]})
    write(host.meta["filename"], {host.meta["key"]: [str(i) for i in range(100)]})
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(host, files, [[name, checksums[name]] for name, _ in getattr(host, files)])
    monkeypatch.setattr(host, "meta", host.meta | {"md5": checksums[host.meta["filename"]]})
    return folder


def test_digits_are_the_bundled_images_without_overlap():
    data = digits()
    parts = [torch.stack([x for x, _ in part]) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [1077, 270, 450]
    assert all(part.dtype == torch.uint8 and part.shape[1:] == data.shape == (1, 8, 8) for part in parts)
    ours = sorted(image.tobytes() for image in torch.cat(parts).numpy())
    assert ours == sorted(image.tobytes() for image in load_digits().images.astype(np.uint8))


def test_digits_are_stratified_and_fixed():
    first, second = digits(), digits()
    for name in ("train", "validation", "test"):
        labels = getattr(first, name).labels
        assert set(labels) == set(range(first.classes))
        assert labels == getattr(second, name).labels
        frequencies = torch.tensor(labels).bincount(minlength=10) / len(labels)
        assert torch.allclose(frequencies, torch.from_numpy(load_digits().target).bincount() / 1797, atol=3e-3)
    images = load_digits()
    x, y = first.test[7]
    assert y in images.target[(images.images == x[0].numpy()).all((1, 2))]


def test_digits_of_a_batch_are_from_0_to_1():
    data = digits()
    x, y = data.collate([data.test[index] for index in range(50)])
    assert x.min() == 0 and x.max() == 1 and x[3].equal(data.test[3][0] / 16)
    assert y.tolist() == data.test.labels[:50]


def test_rows_are_the_steps():
    whole, rows = digits(), digits(rows=True)
    assert (rows.steps, rows.shape) == (8, (8,)) and whole.steps is None
    items = [whole.test[index] for index in range(3)]
    x, y = rows.collate(items)
    assert x.shape == (8, 3, 8)
    assert x[5, 2].equal(whole.collate(items)[0][2, 0, 5])
    x, _ = ImageBatch(rows=True)([(torch.arange(12, dtype=torch.uint8).view(2, 2, 3), 0)])
    assert (x[1, 0] * 255).round().tolist() == [3, 4, 5, 9, 10, 11]


def test_a_batch_is_normalised_channel_by_channel():
    x, _ = ImageBatch((0.5, 0.25), (0.5, 0.125))([(torch.full((2, 1, 1), 51, dtype=torch.uint8), 0)])
    assert torch.allclose(x.flatten(), torch.tensor([(0.2 - 0.5) / 0.5, (0.2 - 0.25) / 0.125]))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "load, inside, mean, std",
    [
        (mnist, "MNIST/raw", 0.1307, 0.3081),
        (fashion_mnist, "FashionMNIST/raw", 0.2860, 0.3530),
        (fashion_mnist, ".", 0.2860, 0.3530),
    ],
)
def test_idx_files(tmp_path, load, inside, mean, std, packed):
    write_idx(tmp_path / inside, packed)
    data = load(str(tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [90, 10, 20]
    x, y = data.test[13]
    assert x.shape == data.shape == (1, 28, 28) and x.dtype == torch.uint8
    assert x[0, 0, 0] == 13 and y == 3
    batch, _ = data.collate([data.test[13]])
    assert torch.allclose(batch[0], (x / 255 - mean) / std)
    train = [int(x[0, 0, 0]) for x, _ in data.train]
    validation = [int(x[0, 0, 0]) for x, _ in data.validation]
    rows = load(str(tmp_path), rows=True)
    assert (rows.steps, rows.shape) == (28, (28,)) and set(rows.test.labels) == set(range(rows.classes))
    assert rows.collate([rows.test[13]])[0].equal(batch[0].transpose(0, 1))
    assert sorted(train + validation) == list(range(100))


def test_mnist_as_torchvision_reads_it(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    theirs = torchvision.datasets.MNIST(str(tmp_path), train=False)
    ours = mnist(str(tmp_path), validation=0)
    assert ours.test.images[:, 0].equal(theirs.data) and ours.test.labels == theirs.targets.tolist()
    assert ours.validation is None and len(ours.train) == 100


@pytest.mark.parametrize("load", [mnist, fashion_mnist, cifar10, cifar100])
def test_rows_of_every_small_set_are_described(load):
    whole, rows = load.describe(), load.describe(rows=True)
    C, H, W = whole.shape
    assert (rows.shape, rows.steps) == ((C * W,), H) and whole.steps is None


def break_file(path, how):
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-9], "magic": b"\0\0\7" + data[3:], "empty": b"", "text": b"<html>"}[how])


@pytest.mark.parametrize("how", ["cut", "magic", "empty", "text"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_idx_file_is_named(tmp_path, packed, how):
    write_idx(tmp_path, packed)
    path = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    break_file(path, how)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        mnist(str(tmp_path))


def test_files_that_do_not_belong_together(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19)))
    with pytest.raises(ValueError, match=r"t10k images \(20, 28, 28\), not \(19, 28, 28\)"):
        mnist(str(tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10)))
    with pytest.raises(ValueError, match="label 10"):
        mnist(str(tmp_path))
    write_idx(tmp_path, side=8)
    with pytest.raises(ValueError, match=r"train images \(100, 8, 8\)"):
        mnist(str(tmp_path))


def test_missing_data_say_what_is_expected_where(tmp_path):
    with pytest.raises(ValueError, match="fashion_mnist needs a folder .--data. with the four idx files"):
        fashion_mnist()
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/no; it should hold the four idx files"):
        fashion_mnist(str(tmp_path / "no"))
    with pytest.raises(ValueError, match=f"{tmp_path} holds no train-images-idx3-ubyte"):
        fashion_mnist(str(tmp_path))
    with pytest.raises(ValueError, match=f"cifar10 in {tmp_path}: .*not found or corrupted"):
        cifar10(str(tmp_path))


@pytest.mark.parametrize("load, host", [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_a_download_is_torchvisions(tmp_path, monkeypatch, load, host):
    def download(root, *, download):
        assert download and root == str(tmp_path / "new")
        write_idx(tmp_path / "new" / host / "raw")

    monkeypatch.setattr(torchvision.datasets, host, download)
    assert len(load(str(tmp_path / "new"), download=True).test) == 20
    monkeypatch.setattr(torchvision.datasets, host, lambda root, download: 1 / 0)
    with pytest.raises(ValueError, match=f"{load.__name__} in {tmp_path}/other: division by zero"):
        load(str(tmp_path / "other"), download=True)


@pytest.mark.parametrize(
    "load, host, label, constants",
    [
        (cifar10, torchvision.datasets.CIFAR10, "labels", [(0.4914, 0.2023), (0.4822, 0.1994), (0.4465, 0.2010)]),
        (cifar100, torchvision.datasets.CIFAR100, "fine_labels", [(0.507, 0.267), (0.487, 0.256), (0.441, 0.276)]),
    ],
)
def test_cifar_pickles(tmp_path, monkeypatch, load, host, label, constants):
    parts = len(host.train_list)
    folder = write_cifar(tmp_path, monkeypatch, host, label)
    data = load(str(tmp_path), validation=0.5)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [10 * parts, 10 * parts, 20]
    assert data.classes == (10 if host.base_folder.startswith("cifar-10-") else 100)
    x, y = data.test[13]
    assert x.dtype == torch.uint8 and x.shape == data.shape == (3, 32, 32) and y == 3
    assert x[1, 0, 0] == parts  # channels, not a reshaped H x W x C
    batch, _ = data.collate([data.test[13]])
    mean, std = torch.tensor(constants).T[..., None, None]
    assert torch.allclose(batch[0], (x / 255 - mean) / std, atol=1e-6)
    rows = load(str(tmp_path), rows=True)
    assert (rows.steps, rows.shape) == (32, (96,)) and rows.collate([rows.test[13]])[0].shape == (32, 1, 96)
    path = folder / host.test_list[0][0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{load.__name__} in {tmp_path}: .*corrupted"):
        load(str(tmp_path))


def test_a_download_of_cifar_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    with pytest.raises(ValueError, match="not found"):
        cifar10(str(tmp_path))
    assert asked == []
    with pytest.raises(ValueError, match="not found"):
        cifar10(str(tmp_path / "new"), download=True)
    assert asked == [str(tmp_path / "new")]


def test_images_in_memory():
    data = Images(torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), torch.tensor([4, 5]))
    assert len(data) == 2 and data[1][0].flatten().tolist() == [4, 5, 6, 7] and data[1][1] == 5
