import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sj_online.data import EvaluationSampler
from sj_online.data.sequences import Recall, Spikes, delayed_recall, shd


def write_shd(folder, counts=(40, 20), longest=1.5):
    """SHD's two files: ragged times (float16 seconds) and units of each recording, and its label."""
    generator = np.random.default_rng(0)
    made = {}
    for part, count in zip(("train", "test"), counts, strict=True):
        made[part] = []
        with h5py.File(folder / f"shd_{part}.h5", "w") as file:
            ragged = h5py.vlen_dtype(np.float16), h5py.vlen_dtype(np.int64)
            times = file.create_dataset("spikes/times", (count,), ragged[0])
            units = file.create_dataset("spikes/units", (count,), ragged[1])
            for index in range(count):
                size = int(generator.integers(50, 90))
                t = np.sort(generator.uniform(0, longest, size)).astype(np.float16)
                u = generator.integers(0, 700, size)
                times[index], units[index] = t, u
                made[part].append((t, u))
            file["labels"] = np.arange(count) % 20
    return made


def spikes_of(t, u, steps, duration):
    out = torch.zeros(steps, 700)
    for time, unit in zip(t.tolist(), u.tolist(), strict=True):
        if time < duration:
            out[int(time / duration * steps), unit] = 1
    return out


def test_what_is_recalled():
    data = Recall(count=300, steps=20, classes=3, cue=4, recall=2, noise=0.3, seed=1)
    labels, noise = [], []
    for index in range(300):
        x, y, mask = data[index]
        assert x.shape == (20, 5) and y.shape == mask.shape == (20,)
        label = int(y[0])
        assert y.eq(label).all() and mask.tolist() == [False] * 18 + [True] * 2
        cue = torch.zeros(20, 3)
        cue[:4, label] = 1
        assert x[:, :3].equal(cue) and x[:, 4].tolist() == [0.0] * 18 + [1.0] * 2
        assert set(x[:, 3].tolist()) <= {0.0, 1.0}
        labels.append(label), noise.append(x[:, 3])
    assert min(np.bincount(labels)) > 70
    assert 0.27 < torch.stack(noise).mean() < 0.33 and len({n.numpy().tobytes() for n in noise}) == 300


def test_recall_is_fixed_by_its_seed():
    def noise(seed, index=5):
        return Recall(10, 50, 2, 1, 1, 0.5, seed)[index][0].numpy().tobytes()

    assert noise(0) == noise(0) != noise(1) and noise(0) != noise(0, 4)
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    noise(0)
    assert torch.rand(1).equal(before)
    data = Recall(10, 50, 2, 1, 1, 0.5, 0)
    assert len(data) == len(list(data)) == 10
    for index in (-1, 10):
        with pytest.raises(IndexError):
            data[index]


def test_delayed_recall_has_three_different_parts():
    data = delayed_recall(steps=30, classes=3, cue=2, recall=3, noise=0.5, count=20)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 10, 10]
    assert vars(delayed_recall.describe(steps=30, classes=3, count=20)).items() <= vars(data).items()
    assert (data.shape, data.steps, data.classes, data.per_step_targets) == ((5,), 30, 3, True)
    parts = [{x.numpy().tobytes() for x, *_ in part} for part in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == 40
    other = delayed_recall(steps=30, classes=3, cue=2, recall=3, noise=0.5, count=20, seed=1)
    assert not other.train[0][0].equal(data.train[0][0])
    x, y, mask = data.collate([data.test[index] for index in range(4)])
    assert x.shape == (30, 4, 5) and mask.sum(0).tolist() == [3] * 4 and x[:2, :, :3].sum() == 8


@pytest.mark.parametrize(
    "options", [{"cue": 0}, {"recall": 0}, {"cue": 60, "recall": 41}, {"classes": 1}, {"count": 1}, {"noise": 1.1}]
)
def test_recall_out_of_range(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        delayed_recall(**options)


def test_recall_by_default():
    data = delayed_recall()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [2000, 1000, 1000]
    x, y, mask = data.train[0]
    assert x.shape == (100, 6) and x[:, :4].sum() == x[:5, y[0]].sum() == mask.sum() == 5
    assert 0 < x[:, 4].sum() < 30 and torch.stack([x[:, 4] for x, *_ in list(data.test)]).mean() < 0.12
    assert x.equal(delayed_recall(seed=0).train[0][0])


def test_recall_at_the_ends_of_the_range():
    assert len(delayed_recall(cue=60, recall=40, noise=0).train[0][1]) == 100
    data = delayed_recall(cue=1, recall=1, steps=2, classes=2, count=2, noise=1)
    assert data.train[0][0][:, -2].tolist() == [1, 1] and len(data.validation) == 1


def test_shd(tmp_path):
    made = write_shd(tmp_path)
    data = shd(str(tmp_path), steps=50, validation=0.5)
    assert vars(shd.describe(steps=50)).items() <= vars(data).items() and (data.classes, data.shape) == (20, (700,))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 20, 20]
    for index, (x, y) in enumerate(data.test):
        assert y == index % 20 and x.dtype == torch.float32
        assert x.equal(spikes_of(*made["test"][index], 50, 1.4))
    seen = {x.numpy().tobytes() for part in (data.train, data.validation) for x, _ in part}
    assert seen == {spikes_of(*pair, 50, 1.4).numpy().tobytes() for pair in made["train"]}
    x, y = data.collate([data.test[3], data.test[4]])
    assert x.shape == (50, 2, 700) and y.tolist() == [3, 4]
    short = shd(str(tmp_path), steps=7, duration=0.5, validation=0)
    assert short.test[3][0].equal(spikes_of(*made["test"][3], 7, 0.5)) and short.validation is None


def _sum(data):
    assert sum(data[index][0].sum().item() for index in range(len(data))) > 0


def test_workers_open_their_own_file(tmp_path):
    write_shd(tmp_path)
    data = Spikes(tmp_path / "shd_test.h5", 20, 1.4, 700)
    here = [data[index][0] for index in range(20)]
    for workers in (0, 2):
        loader = DataLoader(data, batch_sampler=EvaluationSampler(20, 5), num_workers=workers)
        assert torch.cat([x for x, _ in loader]).equal(torch.stack(here))
    copy = pickle.loads(pickle.dumps(data))
    assert copy[3][0].equal(here[3])
    opened = data.opened
    process = multiprocessing.get_context("fork").Process(target=_sum, args=(data,))
    process.start()
    process.join()
    assert process.exitcode == 0 and data.opened is opened


def test_a_parents_handle_is_not_used(tmp_path, monkeypatch):
    write_shd(tmp_path)
    data = Spikes(tmp_path / "shd_test.h5", 20, 1.4, 700)
    data[0]
    first = data.opened
    data[1]
    assert data.opened is first
    monkeypatch.setattr("os.getpid", lambda: -1)
    data[2]
    assert data.opened[0] == -1 and data.opened[1] is not first[1]


def test_damaged_files_are_named(tmp_path):
    write_shd(tmp_path)
    path = tmp_path / "shd_test.h5"
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:100]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path} is missing, damaged or has no spikes/times"):
            shd(str(tmp_path))
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["spikes/units"][3] = np.array([700] * len(file["spikes/times"][3]))
        file["spikes/units"][4] = np.array([5])
    data = shd(str(tmp_path))
    for index in (3, 4):
        with pytest.raises(ValueError, match=f"{path}: recording {index} is damaged"):
            data.test[index]
    assert data.test[5][1] == 5
    data.test.opened[1].file.close()
    with h5py.File(path, "a") as file:
        file["labels"][2] = 20
    with pytest.raises(ValueError, match="label 20 is not from 0 to 19"):
        shd(str(tmp_path))
    with h5py.File(path, "a") as file:
        del file["labels"]
        file["labels"] = np.arange(19)
    with pytest.raises(ValueError, match=f"{path} is missing, damaged .*not of one length"):
        shd(str(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing"):
        shd(str(tmp_path))


def test_shd_options():
    for options in ({"steps": 0}, {"duration": 0}, {"duration": float("nan")}):
        with pytest.raises(ValueError, match="steps=.* must be at least 1, and duration=.* above 0"):
            shd("/nowhere", **options)
    with pytest.raises(ValueError, match="shd needs a folder"):
        shd()
    with pytest.raises(ValueError, match="shd cannot be downloaded"):
        shd("/nowhere", steps=1, download=True)
