import fcntl
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spikingjelly.datasets import utils

from sj_online.data import frames
from sj_online.data.frames import Frames, Integration, locked, prepare

SIZE = (6, 5)


def recording(seed, count=500):
    generator = np.random.default_rng(seed)
    return {
        "t": np.sort(generator.integers(1000, 9000, count)).astype(np.uint32),
        "x": generator.integers(0, 5, count).astype(np.uint8),
        "y": generator.integers(0, 6, count).astype(np.uint8),
        "p": generator.integers(0, 2, count).astype(np.uint8),
    }


def write(folder, count=4):
    folder.mkdir(exist_ok=True)
    for index in range(count):
        np.savez(folder / f"{index}.npz", **recording(index))
    return [folder / f"{index}.npz" for index in range(count)]


@pytest.mark.parametrize("by", ["number", "time"])
@pytest.mark.parametrize("T", [1, 4, 7])
def test_frames_are_the_hosts(by, T):
    events = recording(0)
    theirs = utils.integrate_events_by_fixed_frames_number(events, by, T, *SIZE)
    ours = Integration(T, by, None, SIZE)(events)
    assert ours.shape == (T, 2, 6, 5) and (ours == theirs).all()


def test_frames_of_a_fixed_duration_are_the_hosts_and_cut_or_filled_up():
    events = recording(1)
    theirs = utils.integrate_events_by_fixed_duration(events, 1500, *SIZE)
    assert len(theirs) == 6
    assert (Integration(4, "time", 1500, SIZE)(events) == theirs[:4]).all()
    longer = Integration(9, "time", 1500, SIZE)(events)
    assert (longer[:6] == theirs).all() and not longer[6:].any()


def test_parts_without_events_are_empty():
    events = {
        key: np.array(value) for key, value in {"t": [0, 1, 99], "x": [1, 1, 2], "y": [0, 0, 3], "p": [1, 1, 0]}.items()
    }
    counts = Integration(4, "time", None, SIZE)(events)
    assert counts.sum((1, 2, 3)).tolist() == [2, 0, 0, 1] and counts[0, 1, 0, 1] == 2 and counts[3, 0, 3, 2] == 1
    few = Integration(5, "number", None, SIZE)(events)
    assert few.sum((1, 2, 3)).tolist() == [1, 1, 1, 0, 0]
    still = events | {"t": np.zeros(3)}
    assert Integration(2, "time", None, SIZE)(still).sum((1, 2, 3)).tolist() == [3, 0]


def test_frames_are_resized():
    events = recording(2)
    counts = Integration(3, "number", None, SIZE)(events)
    integration = Integration(3, "number", None, SIZE, resize=4)
    expected = F.interpolate(torch.from_numpy(counts).double(), (4, 4), mode="bilinear", align_corners=False)
    assert np.allclose(integration(events), expected, atol=1e-4)
    assert integration.shape == (3, 2, 4, 4) and integration.dtype == np.float32
    assert Integration(3, "number", None, SIZE).shape == (3, 2, *SIZE)


@pytest.mark.parametrize(
    "options, message",
    [
        ((0, "number", None, SIZE), "frames=0"),
        ((1, "number", None, SIZE, 0), "resize=0"),
        ((2, "event", None, SIZE), "by='event' is not one of number, time"),
        ((2, "number", 100, SIZE), "duration=100 needs by='time'"),
        ((2, "time", 0, SIZE), "duration=0 needs"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Integration(*options)
    assert Integration(1, "time", 1, SIZE, 1).frames == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.full(500, 5)}, "x to 5 and y to 5, outside of 5 x 6"),
        ({"y": np.full(500, 6)}, "y to 6, outside"),
        ({"x": np.full(500, -1)}, "outside"),
        ({"y": np.full(500, -1)}, "outside"),
        ({"t": np.arange(499)}, "499 t, 500 x"),
        ({key: np.zeros(0) for key in "txyp"}, "0 t"),
    ],
)
def test_events_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        Integration(2, "time", None, SIZE)(recording(0) | change)


def test_frames_are_made_once(tmp_path, monkeypatch):
    paths, integration = write(tmp_path / "raw"), Integration(3, "number", None, SIZE)
    data = prepare(tmp_path, integration, paths, [0, 0, 1, 1])
    assert len(data) == 4
    for index, path in enumerate(paths):
        x, y = data[index]
        assert x.dtype == torch.float32 and y == index // 2
        assert (x.numpy() == integration(np.load(path))).all()
    made = list((tmp_path / "frames").glob("*.npy"))
    assert len(made) == 1 and made[0].name.startswith("3_by_number-")
    monkeypatch.setattr(frames, "_build", lambda *arguments: 1 / 0)
    assert prepare(tmp_path, integration, paths, [1, 2, 3, 4]).labels == [1, 2, 3, 4]
    others = Integration(2, "number", None, SIZE), Integration(3, "time", None, SIZE), Integration(3, "time", 5, SIZE)
    for other in (*others, Integration(3, "number", None, SIZE, 4), Integration(3, "number", None, (6, 6))):
        with pytest.raises(ZeroDivisionError):
            prepare(tmp_path, other, paths, [0, 0, 1, 1])


def test_other_recordings_get_other_frames(tmp_path):
    paths, integration = write(tmp_path / "raw"), Integration(3, "number", None, SIZE)
    before = prepare(tmp_path, integration, paths, [0] * 4)[0][0]
    np.savez(paths[0], **recording(9))
    after = prepare(tmp_path, integration, paths, [0] * 4)[0][0]
    assert not after.equal(before) and (after.numpy() == integration(recording(9))).all()
    assert len(prepare(tmp_path, integration, paths[1:], [0] * 3)) == 3


def test_what_a_crash_left_is_not_taken(tmp_path, monkeypatch):
    paths, integration = write(tmp_path / "raw"), Integration(3, "number", None, SIZE)
    left = tmp_path / "frames" / "3_by_number-0.unfinished"
    left.parent.mkdir()
    left.write_bytes(b"half")
    real, calls = frames._integrate, []

    def failing(path, integration):
        calls.append(path)
        if path == paths[2]:
            raise KeyboardInterrupt
        return real(path, integration)

    monkeypatch.setattr(frames, "_integrate", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, integration, paths, [0] * 4)
    assert [path.name for path in left.parent.iterdir()] == [".preparing.lock"]
    monkeypatch.setattr(frames, "_integrate", real)
    assert (prepare(tmp_path, integration, paths, [0] * 4)[3][0].numpy() == integration(recording(3))).all()


def test_a_damaged_recording_is_named(tmp_path):
    paths, integration = write(tmp_path / "raw"), Integration(3, "number", None, SIZE)
    whole = paths[1].read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2]):
        paths[1].write_bytes(data)
        with pytest.raises(ValueError, match=f"{paths[1]} is damaged or no recording"):
            prepare(tmp_path, integration, paths, [0] * 4)
    np.savez(paths[1], t=np.arange(3), x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(ValueError, match=f"{paths[1]} is damaged"):
        prepare(tmp_path, integration, paths, [0] * 4)
    np.savez(paths[1], **{key: np.array([print], dtype=object) for key in "txyp"})  # a pickle
    with pytest.raises(ValueError, match=f"{paths[1]} is damaged.*allow_pickle"):
        prepare(tmp_path, integration, paths, [0] * 4)


def test_a_lock_is_for_one_at_a_time(tmp_path):
    with locked(tmp_path), open(tmp_path / ".preparing.lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / ".preparing.lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _slow(folder, log):
    real = frames._build

    def logged(*arguments):
        log.append(1)
        real(*arguments)

    frames._build = logged
    paths = sorted((folder / "raw").glob("*.npz"))
    data = prepare(folder, Integration(3, "number", None, SIZE), paths, [0] * len(paths))
    assert data[2][0].sum() == 500


def test_two_processes_at_once_make_the_frames_once(tmp_path):
    write(tmp_path / "raw", 60)
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        log = manager.list()
        processes = [context.Process(target=_slow, args=(tmp_path, log)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0] and len(log) == 1


def test_frames_are_pickled_without_the_data(tmp_path):
    paths = write(tmp_path / "raw")
    data = prepare(tmp_path, Integration(50, "number", None, SIZE), paths, [0] * 4)
    x, _ = data[1]
    copy = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 1000 and copy[1][0].equal(x)
    assert isinstance(data.mapped, np.memmap) and isinstance(Frames(Path("x"), [1]), torch.utils.data.Dataset)


def test_counts_beyond_a_byte_are_kept(tmp_path):
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "a.npz"
    np.savez(path, t=np.arange(700), x=np.zeros(700), y=np.zeros(700), p=np.ones(700))
    assert prepare(tmp_path, Integration(1, "number", None, SIZE), [path], [0])[0][0].max() == 700
