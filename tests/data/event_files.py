"""Tiny recordings of events in the real raw formats."""

import struct

import numpy as np
import torch
from spikingjelly import datasets


def recording(seed, size, count=60):
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(0, 5000, count))
    return t, generator.integers(0, size, count), generator.integers(0, size, count), generator.integers(0, 2, count)


def rows(recorded):
    """Events (t, x, y, p) one by one, as Python's numbers."""
    return np.stack(recorded, 1).tolist()


def frames_of(recorded, size, T):
    """T frames of equally many events, by a plain loop."""
    out = torch.zeros(T, 2, size, size)
    t, x, y, p = recorded
    for index in range(len(t)):
        out[min(index // (len(t) // T), T - 1), p[index], y[index], x[index]] += 1
    return out


def write_atis(path, recorded):
    """N-MNIST's format: 5 bytes an event: x, y, p and the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in rows(recorded)))


def write_aedat2(path, recorded):
    """CIFAR10-DVS's format: AEDAT 2.0, big-endian address and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [word for t, x, y, p in rows(recorded) for word in ((127 - x) << 8 | (127 - y) << 1 | (1 - p), t)]
    path.write_bytes(b"#!AER-DAT2.0\r\n# made\r\n" + struct.pack(f">{len(words)}I", *words))


def write_aedat3(path, recorded):
    """DVS128 Gesture's format: AEDAT 3.1, packets of polarity events behind a header of 28 bytes."""
    data = b"".join(
        struct.pack("<II", int(x) << 17 | int(y) << 2 | int(p) << 1 | 1, int(t)) for t, x, y, p in rows(recorded)
    )
    count = len(recorded[0])
    header = struct.pack("<HHIIIIII", 1, 0, 8, 4, 0, count, count, count)
    path.write_bytes(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + header + data)


def write_n_mnist(root):
    for part, count in (("Train", 4), ("Test", 1)):
        for digit in range(10):
            for index in range(count):
                write_atis(root / "extract" / part / str(digit) / f"{index}.bin", recording(10 * index + digit, 34))


def write_cifar10_dvs(root, count=10):
    for label, name in enumerate(datasets.CIFAR10DVS_CLASS_NAMES):
        for index in range(count):
            write_aedat2(root / "extract" / name / f"cifar10_{name}_{index}.aedat", recording(100 * label + index, 128))


def write_gesture(root):
    folder = root / "extract" / "DvsGesture"
    folder.mkdir(parents=True)
    for part, user in (("train", "user01_led"), ("test", "user24_led")):
        (folder / f"trials_to_{part}.txt").write_text(f"{user}.aedat\n\n")
        recorded = [
            np.concatenate(parts) for parts in zip(*(recording(label, 128) for label in range(11)), strict=True)
        ]
        recorded[0] = recorded[0] + 10_000 * (np.arange(660) // 60)
        write_aedat3(folder / f"{user}.aedat", recorded)
        rows = [f"{label + 1},{10_000 * label},{10_000 * (label + 1)}" for label in range(11)]
        (folder / f"{user}_labels.csv").write_text("\n".join(["class,startTime_usec,endTime_usec", *rows]))


def write_folder(root):
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("left", "right")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                t, x, y, p = recording(10 * label + index, 9)
                np.savez(root / part / name / f"{index}.npz", t=t, x=x, y=y, p=p)
