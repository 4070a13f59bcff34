"""What a user gets wrong: one line on stderr, exit code 2, nothing left behind, nothing of a foreign file run."""

import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from sj_online.cli import main


@pytest.fixture
def fails(capsys):
    """Run a command that must fail, and return its line."""

    def run(*arguments) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("sj-online: error: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe=nope"], "known recipes: digits"),
        (["--foo=1"], "unrecognized arguments: --foo=1"),
        (["--train.epoch=1"], "unrecognized arguments: --train.epoch=1"),
        (["--train.lr=fast"], "Parser key \"train.lr\": Expected a <class 'float'>. Got value: fast"),
        (["--num_steps=0"], "num_steps=0 must be at least 1"),
        (["--train.epochs=0"], "train.epochs=0 must be at least 1"),
        (["--train.batch_size=2000"], "train.batch_size=2000 is more than the 1077 training images"),
        (["--fabric.precision=16-mixed", "--fabric.accelerator=cpu"], "fabric.precision=16-mixed needs a GPU"),
        (["--model.name=nope"], "'nope' is not a registered name of models"),
        (["--model.options.nope=1"], "model small_vgg: got an unexpected keyword argument 'nope'"),
        (["--model.options.in_channels=3"], "cannot take the images (1, 8, 8) of data set digits"),
        (["--model.options.plan=[1, A, 1, A, 1, A, 1, A]"], "cannot take the images (1, 8, 8) of data set digits"),
        (["--model.options.num_classes=5"], "labels 0 to 9 of data set digits are out of range"),
        (["--train.rule=nope"], "'nope' is not a registered name of trainers"),
        (["--train.options.update=never"], "training rule sltt: update='never' is not one of 'step', 'sequence'"),
        (["--train.options.loss_fn=2"], "train.options cannot set loss_fn: the recipe does"),
        (["--train.options.num_steps=2"], "train.options cannot set num_steps: the recipe does"),
        (["--train.rule=random_bp", '--train.options={"k": 9}'], "k=9 steps cannot be drawn from T=4"),
        (["--train.label_smoothing=2"], "train.label_smoothing=2.0 must be from 0 to 1"),
        (["--fabric.threads=99999999"], "fabric.threads=99999999 must be from 1 to 1024"),
        (["--model.options.width=0"], "model small_vgg"),
        (["--model.options.width=-2"], "model small_vgg: Trying to create tensor with negative dimension"),
        (["--dataset.options.shift=-3"], "data set digits: shift=-3 must be at least 0"),
        (["--dataset.options.nope=1"], "data set digits: digits() got an unexpected keyword argument 'nope'"),
    ],
)
def test_train(tmp_path, fails, options, message):
    assert message in fails("train", "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_train_without_the_device_asked_for(tmp_path, fails):
    assert "there is no CUDA device" in fails("train", "--out", tmp_path / "run", "--fabric.accelerator=cuda")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"train: {epoch: 7}", "Group 'train' does not accept option 'epoch'"),
        (b"train: [", "Problems parsing config"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"num_steps: 0", "num_steps=0 must be at least 1"),
        (b"seed: !!python/object/apply:os.mkdir [hacked]", "could not determine a constructor for the tag"),
    ],
)
def test_recipe_file(tmp_path, monkeypatch, fails, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(text)
    line = fails("train", "--recipe", "mine.yaml", "--out", "run")
    assert message in line
    assert "recipe mine.yaml: " in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_directory_in_use(run_dir, tiny, fails):
    assert "it holds a run; give --resume" in fails("train", "--out", run_dir, *tiny)


def test_directory_that_cannot_be_made(tmp_path, tiny, fails):
    (tmp_path / "file").touch()
    assert "Not a directory" in fails("train", "--out", tmp_path / "file" / "run", *tiny)


@pytest.mark.parametrize("command", [["eval"], ["export", "--to=x.safetensors"]])
def test_no_run(tmp_path, monkeypatch, fails, command):
    monkeypatch.chdir(tmp_path)
    assert "holds no config.yaml" in fails(*command, tmp_path)
    assert not (tmp_path / "x.safetensors").exists()


class Malicious:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('hacked').touch()",)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_empty(path):
    path.write_bytes(b"")


def damage_pickle(path):
    path.write_bytes(pickle.dumps(Malicious()))


def damage_torch_pickle(path):
    torch.save({"net": Malicious()}, path)


def damage_keys(path):
    torch.save({"epoch": 3}, path)


def damage_shapes(path):
    state = torch.load(path, weights_only=True)
    state["net"] = {name: tensor[..., None] for name, tensor in state["net"].items()}
    torch.save(state, path)


def damage_progress_types(path):
    state = torch.load(path, weights_only=True)
    state["progress"]["epoch"] = "x"
    torch.save(state, path)


def damage_progress(path):
    state = torch.load(path, weights_only=True)
    state["progress"] = {"epoch": 1, "of": "another program"}
    torch.save(state, path)


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_empty,
        damage_pickle,
        damage_torch_pickle,
        damage_keys,
        damage_shapes,
        damage_progress,
        damage_progress_types,
    ],
)
def test_checkpoint(tmp_path, monkeypatch, run_dir, tiny, fails, damage):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / "summary.json").unlink()
    damage(run / "last.ckpt")
    before = (run / "metrics.jsonl").read_bytes()
    for command in (["eval", run], ["export", run, "--to=x.safetensors"], ["train", "--out", run, *tiny, "--resume"]):
        assert "last.ckpt is truncated, damaged or not a checkpoint of this run" in fails(*command)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_missing_checkpoint(tmp_path, run_dir, fails):
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / "best.ckpt").unlink()
    assert "there is no checkpoint" in fails("eval", run, "--checkpoint=best")


def test_packed_file(tmp_path, monkeypatch, run_dir, fails):
    monkeypatch.chdir(tmp_path)
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    assert main(["export", str(run_dir), "--to", str(good)]) == 0
    content = good.read_bytes()
    for damaged in (content[:-10], content[:50], b"", pickle.dumps(Malicious()), b"\x00" * 4096):
        bad.write_bytes(damaged)
        assert "bad.safetensors" in fails("eval", bad)
    save_file({"weight": torch.zeros(3)}, bad)
    assert "not one of sj_online" in fails("eval", bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors", "good.safetensors"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda header: header["kwargs"].update(width=9), "has no synapse"),
        (lambda header: header["kwargs"].update(num_steps=7), "raw_decay"),
        (lambda header: next(iter(header["packed"].values())).update(shape=[9, 4, 3, 3]), "is not there with its type"),
        (lambda header: header["metadata"].clear(), "recipe in"),
        (lambda header: header["metadata"]["recipe"]["train"].update(epochs="many"), "train.epochs"),
    ],
)
def test_packed_file_whose_header_does_not_match(tmp_path, run_dir, fails, edit, message):
    file = tmp_path / "net.safetensors"
    assert main(["export", str(run_dir), "--to", str(file)]) == 0
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["sj_online"])
    edit(header)
    outer["__metadata__"]["sj_online"] = json.dumps(header)
    text = json.dumps(outer).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    line = fails("eval", file)
    assert message in line
    assert "net.safetensors" in line


def test_export_into_a_missing_folder(tmp_path, run_dir, fails):
    assert "missing" in fails("export", run_dir, "--to", tmp_path / "missing" / "net.safetensors")


def test_the_process_says_it_the_same_way(tmp_path):
    command = [sys.executable, "-c", "import sys; from sj_online.cli import main; sys.exit(main())"]
    done = subprocess.run([*command, "train", "--num_steps=0", "--out", tmp_path / "run"], capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"sj-online: error: num_steps=0 must be at least 1\n"
