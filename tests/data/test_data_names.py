import inspect
import subprocess
import sys

import pytest
from package_names import own

from sj_online import registry
from sj_online.data import Shape

NEEDED = {"image_folder": {"classes": 3, "size": 16}, "event_folder": {"classes": 3, "size": (16, 12)}}
SHAPES = {
    "cifar10": Shape(classes=10, shape=(3, 32, 32)),
    "cifar100": Shape(classes=100, shape=(3, 32, 32)),
    "cifar10_dvs": Shape(classes=10, shape=(2, 128, 128), steps=10),
    "delayed_recall": Shape(classes=4, shape=(6,), steps=100, per_step_targets=True),
    "digits": Shape(classes=10, shape=(1, 8, 8)),
    "dvs_gesture": Shape(classes=11, shape=(2, 128, 128), steps=20),
    "event_folder": Shape(classes=3, shape=(2, 16, 12), steps=10),
    "fashion_mnist": Shape(classes=10, shape=(1, 28, 28)),
    "image_folder": Shape(classes=3, shape=(3, 16, 16)),
    "imagenet": Shape(classes=1000, shape=(3, 224, 224)),
    "mnist": Shape(classes=10, shape=(1, 28, 28)),
    "n_mnist": Shape(classes=10, shape=(2, 34, 34), steps=10),
    "shd": Shape(classes=20, shape=(700,), steps=100),
    "tiny_imagenet": Shape(classes=200, shape=(3, 64, 64)),
}
SMALL = {"validation": 0.1, "rows": False}
EVENTS = {"frames": 10, "by": "number", "duration": None, "resize": None, "validation": 0.1}
DEFAULTS = {
    "cifar10": SMALL,
    "cifar100": SMALL,
    "cifar10_dvs": EVENTS | {"split": "first", "mean": (0.0, 0.0), "std": (1.0, 1.0)},
    "delayed_recall": {"steps": 100, "classes": 4, "cue": 5, "recall": 5, "noise": 0.1, "count": 2000, "seed": 0},
    "digits": {"rows": False},
    "dvs_gesture": EVENTS | {"frames": 20},
    "event_folder": EVENTS,
    "fashion_mnist": SMALL,
    "image_folder": {
        "validation": 0.1,
        "memory": False,
        "mean": (0.485, 0.456, 0.406),  # of ImageNet
        "std": (0.229, 0.224, 0.225),
    },
    "imagenet": {"validation": 0.01},
    "mnist": SMALL,
    "n_mnist": EVENTS,
    "shd": {"steps": 100, "duration": 1.4, "validation": 0.1},
    "tiny_imagenet": {"validation": 0.1, "memory": False},
}


def test_every_data_set_is_registered():
    assert set(own("data")) >= set(SHAPES)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_data_set_describes_itself_without_files(name):
    load = registry.get("data", name)
    assert load.describe("/nowhere", **NEEDED.get(name, {})) == SHAPES[name]
    parameters = inspect.signature(load).parameters
    assert (
        list(parameters)[:2] == ["root", "download"] and parameters["download"].kind is inspect.Parameter.KEYWORD_ONLY
    )
    assert parameters["root"].default is None and parameters["download"].default is False
    given = {each.name: each.default for each in list(parameters.values())[2:] if each.default is not each.empty}
    assert given == DEFAULTS[name]  # what a recipe leaves out means the same in every version


@pytest.mark.parametrize(
    "name", ["dvs_gesture", "event_folder", "image_folder", "imagenet", "n_mnist", "shd", "tiny_imagenet"]
)
def test_what_cannot_be_downloaded_says_so(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} cannot be downloaded by this program: put "):
        registry.get("data", name)(str(tmp_path), download=True, **NEEDED.get(name, {}))


@pytest.mark.parametrize("name", own("augmentations"))
def test_every_augmentation_is_made_by_its_defaults(name):
    make = registry.get("augmentations", name)
    takes_classes = "classes" in inspect.signature(make).parameters
    assert callable(make(classes=3) if takes_classes else make())


def test_importing_is_light():
    modules = "base sampler split images folder frames recordings events sequences augment"
    program = "".join(f"import sj_online.data.{name}\n" for name in modules.split())
    program += "import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torchvision", "torchvision.datasets", "spikingjelly.datasets", "h5py", "sklearn", "PIL"}
    assert "sj_online.data.events" in loaded and not heavy & set(loaded)
