import hashlib
import zipfile

import pytest
from event_files import write_cifar10_dvs, write_gesture, write_n_mnist
from spikingjelly import datasets

from sj_online.data.events import cifar10_dvs, dvs_gesture, n_mnist
from sj_online.data.recordings import raw_events


def listing(root):
    return sorted(str(path.relative_to(root)) for path in (root / "events_np").rglob("*.npz"))


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """N-MNIST as it is published. The host compares checksums: those of the made files take the place of its own."""
    root = tmp_path / "packed"
    write_n_mnist(tmp_path)
    (root / "download").mkdir(parents=True)
    checksums = []
    for part in ("Train", "Test"):
        path = root / "download" / f"{part}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "extract" / part).rglob("*.bin")):
                archive.write(file, file.relative_to(tmp_path / "extract"))
        checksums.append((path.name, "https://nowhere.invalid", hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.NMNIST, "resource_url_md5", classmethod(lambda cls: checksums))
    return root


def test_archives_are_unpacked_and_read_once(packed, monkeypatch):
    data = n_mnist(str(packed), frames=2, validation=0)
    assert (len(data.train), len(data.test)) == (40, 10) and len(listing(packed)) == 50
    monkeypatch.setattr(datasets.NMNIST, "create_raw_from_extracted", lambda *_: 1 / 0)
    assert len(n_mnist(str(packed), frames=2).test) == 10


def test_a_damaged_archive_is_named_and_kept(packed):
    path = packed / "download" / "Test.zip"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} is damaged: its MD5 is not [0-9a-f]+"):
        n_mnist(str(packed))
    assert path.exists() and not (packed / "extract").exists()


def test_what_a_crash_left_is_made_anew(packed):
    n_mnist(str(packed), frames=2)
    whole = listing(packed)
    (packed / "events_np.building").touch()
    for path in [*(packed / "events_np").rglob("*.npz"), *(packed / "extract").rglob("*.bin")][::2]:
        path.unlink()  # both half unpacked and half read
    assert len(listing(packed)) < len(whole)
    assert len(n_mnist(str(packed), frames=2).test) == 10
    assert listing(packed) == whole and not (packed / "events_np.building").exists()


def test_a_crash_before_anything_was_unpacked(packed):
    (packed / "events_np.building").touch()
    assert len(n_mnist(str(packed), frames=2).test) == 10


def test_what_was_unpacked_by_hand_is_not_removed(tmp_path):
    write_n_mnist(tmp_path)
    (tmp_path / "events_np").mkdir()
    (tmp_path / "events_np.building").touch()
    assert raw_events("n_mnist", "NMNIST", str(tmp_path), False) == tmp_path
    assert len(listing(tmp_path)) == 50 and len(list((tmp_path / "extract").rglob("*.bin"))) == 50


def test_a_finished_folder_may_be_read_only(tmp_path, monkeypatch):
    (tmp_path / "events_np").mkdir()
    monkeypatch.setattr("sj_online.data.recordings.locked", lambda folder: 1 / 0)
    assert raw_events("n_mnist", "NMNIST", str(tmp_path), False) == tmp_path
    (tmp_path / "events_np.building").touch()
    with pytest.raises(ZeroDivisionError):
        raw_events("n_mnist", "NMNIST", str(tmp_path), False)


def test_another_process_may_have_read_them_meanwhile(tmp_path, monkeypatch):
    class Locked:
        def __init__(self, folder):
            (folder / "events_np").mkdir()

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("sj_online.data.recordings.locked", Locked)
    monkeypatch.setattr("sj_online.data.recordings._read", lambda *_: 1 / 0)
    assert raw_events("n_mnist", "NMNIST", str(tmp_path), False) == tmp_path


def test_a_damaged_recording_is_named(tmp_path):
    write_n_mnist(tmp_path / "n")
    path = tmp_path / "n" / "extract" / "Train" / "7" / "2.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=f"n_mnist: {path} is damaged or incomplete") as caught:
        n_mnist(str(tmp_path / "n"))
    assert "\n" not in str(caught.value)
    path.unlink()
    assert len(n_mnist(str(tmp_path / "n")).test) == 10  # and the marker of the failure is no obstacle

    write_cifar10_dvs(tmp_path / "c")
    path = tmp_path / "c" / "extract" / "bird" / "cifar10_bird_3.aedat"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=f"cifar10_dvs: {path} is damaged or incomplete: odd number"):
        cifar10_dvs(str(tmp_path / "c"))

    write_gesture(tmp_path / "g")
    path = tmp_path / "g" / "extract" / "DvsGesture" / "user24_led.aedat"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=f"dvs_gesture: {path} is damaged or incomplete: unpack requires"):
        dvs_gesture(str(tmp_path / "g"))
    path.unlink()
    with pytest.raises(ValueError, match=f"dvs_gesture: {path} is damaged or incomplete"):
        dvs_gesture(str(tmp_path / "g"))


def test_missing_data_say_what_is_expected_where(tmp_path):
    text = r"download/ with Train.zip Test.zip, or extract/ with what is in them"
    with pytest.raises(ValueError, match=f"n_mnist: {tmp_path} should hold {text}"):
        n_mnist(str(tmp_path))
    with pytest.raises(ValueError, match=f"n_mnist needs a folder .--data. with {text}"):
        n_mnist()
    with pytest.raises(ValueError, match="n_mnist cannot be downloaded by this program: put download/ with Train.zip"):
        n_mnist(str(tmp_path), download=True)
    with pytest.raises(ValueError, match="dvs_gesture: .* should hold download/ with DvsGesture.tar.gz"):
        dvs_gesture(str(tmp_path))
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "Train.zip").touch()
    with pytest.raises(ValueError, match="n_mnist: .* should hold"):
        n_mnist(str(tmp_path))


def test_the_host_downloads_only_when_asked(tmp_path, monkeypatch):
    asked = []

    def download(cls, folder):
        asked.append(folder)
        raise OSError("no network")

    monkeypatch.setattr(datasets.CIFAR10DVS, "_download_all_files", classmethod(download))
    with pytest.raises(ValueError, match="cifar10_dvs: .* should hold download/ with airplane.zip"):
        cifar10_dvs(str(tmp_path))
    assert asked == []
    with pytest.raises(ValueError, match=f"cifar10_dvs: {tmp_path}/new/a.* no network"):
        cifar10_dvs(str(tmp_path / "new" / "a"), download=True)
    assert asked == [tmp_path / "new" / "a" / "download"]
