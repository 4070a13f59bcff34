"""What a user gets wrong: one line on stderr, exit code 2, nothing left behind, nothing of a foreign file run."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sj_online.app import cli
from sj_online.app.cli import main


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
        (["--recipe=nope"], "known recipes: see sj-online list recipes"),
        (["--recipe=digit"], "known recipes; close to it: digits"),
        (["--recipe=digits", "--recipe=digits"], "--recipe is given twice"),
        (["--recip=digits"], "unrecognized arguments: --recip=digits"),
        (["--foo=1"], "unrecognized arguments: --foo=1"),
        (["--data.name", "cifar10"], "unrecognized arguments: --data.name cifar10"),
        (["--train.epoch=1"], "unrecognized arguments: --train.epoch=1"),
        (["--train.epochs=many"], "train.epochs='many' is not a whole number"),
        (["--train.epochs=[1"], "--train.epochs: while parsing a flow sequence"),
        (["--num_steps=0"], "num_steps=0 must be from 1 to 10000"),
        (["--num_steps=null"], "num_steps=null, but data set digits is static"),
        (["--train.epochs=0"], "train.epochs=0 must be from 1 to 100000"),
        (["--train.workers=1000000000000"], "train.workers=1000000000000 must be from 0 to 256"),
        (["--fabric.devices", "1" + 32 * "0"], "fabric.devices=1"),
        (["--fabric.devices=1000", "--fabric.accelerator=cpu"], "fabric.devices=1000, but there are"),
        (["--train.epochs=1e9"], "train.epochs=1000000000.0 is not a whole number"),
        (["--train.batch_size=2000"], "2000"),
        (["--fabric.precision=16-mixed", "--fabric.accelerator=cpu"], "fabric.precision=16-mixed needs a GPU"),
        (["--fabric.precision=8"], "fabric.precision='8' is not one of 32-true, bf16-mixed, 16-mixed"),
        (["--fabric.threads=99999999"], "fabric.threads=99999999 must be from 1 to 1024"),
        (["--model=nope"], "'nope' is not a registered name of models"),
        (["--model.options.nope=1"], "model small_vgg: nope is not an option; it has num_classes, in_channels"),
        (["--model.options.width=wide"], "model small_vgg: width='wide' must be int"),
        (["--model.options.width"], "--model.options.width needs a value"),
        (["--model.options.width", "--resume"], "--model.options.width needs a value"),
        (["--model.options=3"], "model.options=3 is not a table"),
        (["--model.options.in_channels=3"], "cannot take the samples (1, 8, 8) of data set digits"),
        (["--model.options.plan=[1, A, 1, A, 1, A, 1, A]"], "cannot take the samples (1, 8, 8) of data set digits"),
        (["--model.options.num_classes=5"], "model small_vgg has 5 outputs, data set digits 10 classes"),
        (["--model.options.width=0"], "model small_vgg"),
        (["--model.options.width=-2"], "model small_vgg: Trying to create tensor with negative dimension"),
        (["--model.options.width=1000000000"], "model small_vgg"),
        (["--dataset.options.nope=1"], "data set digits: nope is not an option; it has rows"),
        (["--dataset.options.root=x"], "data set digits: root cannot be set here: the recipe does"),
        (["--dataset.augment=[Lambda]"], "'Lambda' is not a registered name of augmentations"),
        (["--dataset.augment=RandomCrop"], "dataset.augment='RandomCrop' is not a list"),
        (["--dataset.augment=[RandomCrop]"], "augmentation RandomCrop: "),
        (["--train.rule=nope"], "'nope' is not a registered name of trainers"),
        (["--train.rule.options.update=never"], "training rule sltt: update='never' is not one of 'step', 'sequence'"),
        (["--train.rule.options.loss_fn=2"], "training rule sltt: loss_fn cannot be set here: the recipe does"),
        (["--train.rule.options.num_steps=2"], "training rule sltt: num_steps cannot be set here: the recipe does"),
        (["--train.rule=random_bp", "--train.rule.options={k: 9}"], "k=9 steps cannot be drawn from T=4"),
        (["--train.loss.options.label_smoothing=2"], "label_smoothing must be between 0.0 and 1.0. Got: 2"),
        (["--train.loss=Optimizer"], "'Optimizer' is not a registered name of losses"),
        (["--train.optimizer=os.system"], "'os.system' is not a registered name of optimizers"),
        (["--train.optimizer.options.lr=-1"], "optimizer sgd: Invalid learning rate: -1"),
        (["--train.optimizer.options.lr=.nan"], "lr=nan is not a finite number"),
        (["--train.schedule=LambdaLR"], "'LambdaLR' is not a registered name of schedules"),
        (
            ["--train.schedule.options.warmup=12"],
            "schedule cosine: warmup=12 must be from 0 to less than the 12",
        ),
        (["--train.schedule.options.epochs=3"], "schedule cosine: epochs cannot be set here"),
        (["--train.callbacks=[nope]"], "'nope' is not a registered name of callbacks"),
        (["--start.run=nowhere"], "start.run=nowhere is not the directory of a run"),
        (["--start.run=nowhere", "--start.convert=exec"], "'exec' is not one of the conversions"),
        (["--seed=null"], "seed=None is not a whole number"),
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
        (b"train: {epoch: 7}", "train.epoch is not a key; train has rule, loss"),
        (b"train: [", "while parsing a flow"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"", "it holds no keys and values"),
        (b"num_steps: 0", "num_steps=0 must be from 1"),
        (b"seed: 1\nseed: 2", "line 2: key 'seed' comes twice"),
        (b"base: nope", "base='nope' is not one of the known recipes"),
        (b"seed: !!python/object/apply:os.mkdir [hacked]", "tags such as"),
        (b"x: &x [1]\ny: *x", "anchors and aliases"),
        (b"a: " + 70000 * b"x", "it has more than 65536 bytes"),
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


def test_checkpoint(tmp_path, monkeypatch, run_dir, tiny, fails):
    """Every command that reads one; the ways to be damaged are in test_app_state."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / "summary.json").unlink()
    (run / "last.ckpt").write_bytes(pickle.dumps(Malicious()))
    before = (run / "metrics.jsonl").read_bytes()
    for command in (["eval", run], ["export", run, "--to=x.safetensors"], ["train", "--out", run, *tiny, "--resume"]):
        assert "last.ckpt is no checkpoint of a run" in fails(*command)
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
        (lambda header: header["kwargs"].update(width=500_000), "GB for its weights"),
        (lambda header: next(iter(header["packed"].values())).update(shape=[9, 4, 3, 3]), "is not there with its type"),
        (lambda header: header["metadata"].clear(), "it names no data set"),
        (lambda header: header["metadata"].update(num_steps="many"), "num_steps='many' is not a whole number"),
        (lambda header: header["metadata"]["dataset"].update(name="nope"), "'nope' is not a registered name of data"),
        (lambda header: header["metadata"]["dataset"].update(options={"class_path": "os.system"}), "class_path is not"),
        (lambda header: header["kwargs"].update(class_path="os.system"), "class_path is not an option"),
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
    outer["__metadata__"] = {"sj_online": json.dumps(header)}
    text = json.dumps(outer).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    line = fails("eval", file)
    assert message in line
    assert "net.safetensors" in line


def test_export_into_a_missing_folder(tmp_path, run_dir, fails):
    assert "missing" in fails("export", run_dir, "--to", tmp_path / "missing" / "net.safetensors")


def test_the_process_says_it_the_same_way(tmp_path):
    command = [sys.executable, "-c", "import sys; from sj_online.app.cli import main; sys.exit(main())"]
    done = subprocess.run([*command, "train", "--num_steps=0", "--out", tmp_path / "run"], capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"sj-online: error: num_steps=0 must be from 1 to 10000\n"


def test_what_is_not_ours_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    def broken(args):
        raise RuntimeError("a bug")

    monkeypatch.setitem(cli.COMMANDS, "train", broken)
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert line == f"sj-online: error: RuntimeError: a bug (the traceback is in {tmp_path}/run/error.log)\n"
    assert "in broken" in (tmp_path / "run" / "error.log").read_text()


def test_without_a_directory_the_traceback_is_in_a_file_of_its_own(monkeypatch, capsys):
    def broken(args):
        raise KeyError("a bug")

    monkeypatch.setitem(cli.COMMANDS, "eval", broken)
    assert main(["eval", "x"]) == 2
    log = Path(capsys.readouterr().err.split("the traceback is in ")[1].strip(")\n"))
    assert "in broken" in log.read_text()
    log.unlink()
