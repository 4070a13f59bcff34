import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from sj_online.data import Augmented
from sj_online.data.folder import ImageFiles, image_folder, imagenet, tiny_imagenet

NAMES = "ab", "cd", "ef"


def picture(path, color, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    """Class c has red 10 * c + i, in the test folder 100 more."""
    for label, name in enumerate(NAMES):
        for index in range(10):
            picture(tmp_path / "train" / name / f"{index}.png", (10 * label + index, 200, 50))
        for index in range(2):
            picture(tmp_path / "val" / name / f"{index}.png", (100 + 10 * label + index, 200, 50))
    return tmp_path


def red(part):
    return [(int(x[0, 0, 0]), y) for x, y in part]


@pytest.mark.parametrize("memory", [False, True])
def test_an_image_folder(folder, memory):
    data = image_folder(
        str(folder), classes=3, size=8, memory=memory, validation=0.2, mean=(0, 0, 0.5), std=[1, 2, 0.5]
    )
    assert red(data.test) == [(100 + 10 * label + index, label) for label in range(3) for index in range(2)]
    everything = sorted(red(data.train) + red(data.validation))
    assert everything == [(10 * label + index, label) for label in range(3) for index in range(10)]
    assert sorted(y for _, y in red(data.validation)) == [0, 0, 1, 1, 2, 2]
    x, y = data.collate([data.test[3]])
    expected = torch.tensor([111 / 255, 200 / 255 / 2, (50 / 255 - 0.5) / 0.5])
    assert torch.allclose(x[0, :, 5, 5], expected) and y.tolist() == [1]
    assert data.test[0][0].dtype == torch.uint8 and data.shape == (3, 8, 8)
    assert isinstance(data.test, ImageFiles) is not memory


def test_a_folder_of_test_images_is_taken_before_val(folder):
    for name in NAMES:
        picture(folder / "test" / name / "0.jpg", "white")
    data = image_folder(str(folder), classes=3, size=8)
    assert red(data.test) == [(255, 0), (255, 1), (255, 2)]
    assert len(data.validation) == 3 and image_folder(str(folder), classes=3, size=8, validation=0).validation is None


def test_images_of_another_size_are_cut(tmp_path):
    path = tmp_path / "wide.png"
    image = Image.new("RGB", (64, 28), "black")
    image.paste("white", (18, 0, 46, 28))  # the middle 28 x 28
    image.save(path)
    listing = [path], [1]
    middle, y = ImageFiles(listing, 14)[0]
    assert middle.shape == (3, 14, 14) and y == 1 and middle.float().mean() > 254  # 16 of 14 / 7 * 8, then 14
    path = tmp_path / "as_resized.png"  # 16 pixels are 8/7 of 14: nothing is resized, the margin of 1 is cut
    Image.frombytes("RGB", (16, 16), torch.randint(256, (768,), dtype=torch.uint8).numpy().tobytes()).save(path)
    assert ImageFiles(([path], [0]), 14)[0][0].equal(pil_to_tensor(Image.open(path))[:, 1:15, 1:15])
    cut = Augmented(ImageFiles(listing, 14, training=True), [], seed=0)
    seen = [cut[epoch, 0][0] for epoch in range(6)]
    assert {x.shape for x in seen} == {(3, 14, 14)} and len({x.numpy().tobytes() for x in seen}) > 3
    assert seen[2].equal(cut[2, 0][0])
    tall = tmp_path / "tall.png"
    image.transpose(Image.Transpose.ROTATE_90).resize((14, 32)).save(tall)
    assert ImageFiles(([tall], [0]), 14)[0][0].shape == (3, 14, 14)


def test_images_of_the_right_size_are_left_alone_in_training_too(tmp_path):
    path = tmp_path / "x.png"
    picture(path, "red")
    image = Image.open(path)
    image.putpixel((3, 2), (0, 255, 0))
    image.save(path)
    for training in (False, True):
        assert ImageFiles(([path], [0]), 8, training)[0][0].equal(pil_to_tensor(image))


def test_only_the_training_part_is_cut_at_random(folder):
    data = image_folder(str(folder), classes=3, size=4)
    assert type(data.train.dataset.cut).__name__ == "RandomResizedCrop"
    assert type(data.validation.dataset.cut).__name__ == type(data.test.cut).__name__ == "Compose"


def test_grey_and_transparent_images_become_rgb(tmp_path):
    picture(tmp_path / "grey.png", 7, mode="L")
    picture(tmp_path / "clear.png", (1, 2, 3, 0), mode="RGBA")
    files = ImageFiles(([tmp_path / "grey.png", tmp_path / "clear.png"], [0, 0]), 8)
    assert files[0][0][:, 0, 0].tolist() == [7, 7, 7] and files[1][0][:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("data", [b"", b"no image", "cut"])
def test_a_damaged_image_is_named(folder, data):
    path = folder / "val" / "cd" / "1.png"
    path.write_bytes(path.read_bytes()[:-30] if data == "cut" else data)
    loaded = image_folder(str(folder), classes=3, size=8)
    with pytest.raises(ValueError, match=f"{path} is missing or not an image"):
        loaded.test[3]
    with pytest.raises(ValueError, match=f"{path} is missing or not an image"):
        image_folder(str(folder), classes=3, size=8, memory=True)


def test_folders_that_are_not_as_said(folder, tmp_path):
    with pytest.raises(ValueError, match=f"{folder}/train should hold a folder for each of 4 classes, and holds 3"):
        image_folder(str(folder), classes=4, size=8)
    (folder / "val" / "ef").rename(folder / "val" / "xy")
    with pytest.raises(ValueError, match="train/ and val/ have not the same classes"):
        image_folder(str(folder), classes=3, size=8)
    (folder / "train" / "new").mkdir()
    with pytest.raises(ValueError, match=r"train/new holds no images \(.jpg .*.png"):
        image_folder(str(folder), classes=4, size=8)
    with pytest.raises(ValueError, match="image_folder cannot be downloaded by this program: put train/<class>/"):
        image_folder(str(folder), classes=3, size=8, download=True)
    with pytest.raises(ValueError, match="image_folder needs a folder"):
        image_folder(classes=3, size=8)
    with pytest.raises(ValueError, match="val should hold a folder for each of 1000 classes, and holds 0"):
        (tmp_path / "i").mkdir()
        for index in range(1000):
            picture(tmp_path / "i" / "train" / f"n{index:08d}" / "0.JPEG", "red", (1, 1))
        imagenet(str(tmp_path / "i"))


def tiny(folder):
    for label in range(200):
        wnid = f"n{label:08d}"
        for index in range(2):
            picture(folder / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", (label, label, label), (64, 64))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t1\t1\n")
    lines = []
    for index in range(5):
        picture(folder / "val" / "images" / f"val_{index}.JPEG", (0, 0, 0), (64, 64))
        lines.append(f"val_{index}.JPEG\tn{199 - index:08d}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def test_tiny_imagenet(tmp_path):
    tiny(tmp_path)
    data = tiny_imagenet(str(tmp_path), validation=0.5)
    assert (data.classes, data.shape) == (200, (3, 64, 64)) == (tiny_imagenet.describe().classes, (3, 64, 64))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [200, 200, 5]
    assert [y for _, y in data.test] == [199, 198, 197, 196, 195]
    assert all(int(x[0, 9, 9]) == y for x, y in data.train)
    x, _ = data.collate([data.test[0]])
    assert torch.allclose(x[0, :, 0, 0], -torch.tensor([0.4802 / 0.2770, 0.4481 / 0.2691, 0.3975 / 0.2821]))
    assert tiny_imagenet(str(tmp_path), memory=True).test.images.shape == (5, 3, 64, 64)
    annotations = tmp_path / "val" / "val_annotations.txt"
    for text in ("val_0.JPEG\n", "val_0.JPEG\tn99999999\n"):
        annotations.write_text(text)
        with pytest.raises(ValueError, match=f"{annotations} should name a file and a class of train/ in each line"):
            tiny_imagenet(str(tmp_path))


def test_imagenet(tmp_path):
    for part, size in (("train", (300, 240)), ("val", (224, 224))):
        for index in range(1000):
            picture(tmp_path / part / f"n{index:08d}" / "0.JPEG", (index // 4, 0, 0), size if index == 8 else (1, 1))
    (tmp_path / "train" / "n00000009" / "0.JPEG").write_bytes(b"damaged")  # seen when it is asked for, not before
    data = imagenet(str(tmp_path))
    with pytest.raises(ValueError, match="n00000009/0.JPEG is missing or not an image"):
        data.train[9]
    assert (len(data.train), data.validation, len(data.test)) == (1000, None, 1000)
    assert data.shape == imagenet.describe().shape == (3, 224, 224)
    assert data.classes == 1000 and data.train[8][0].shape == data.test[8][0].shape == (3, 224, 224)
    x, y = data.collate([data.test[8]])
    assert torch.allclose(x[0, 1:, 0, 0], -torch.tensor([0.456 / 0.224, 0.406 / 0.225]), atol=0.02) and y.tolist() == [
        8
    ]
