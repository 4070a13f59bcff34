import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from package_names import own
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sj_online import prediction, registry
from sj_online.app import batches, cli, outcome, reader, state
from sj_online.app.cli import main


def accuracy(out):
    return float(re.search(r"^accuracy (\d\.\d{4}) \(450 test images of digits\)$", out, re.M)[1])


def test_train_prints_a_line_per_epoch(tmp_path, tiny, capsys):
    """Not a terminal: no bar, nothing on stderr."""
    assert main(["train", "--out", str(tmp_path / "run"), *tiny]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert re.fullmatch(r"small_vgg on digits: [\d,]+ parameters, sltt, T=2, .* -> .*/run", lines[0])
    for epoch, line in enumerate(lines[1:3], start=1):
        assert re.match(
            rf"epoch {epoch}/2  lr 0\.\d+  loss \d\.\d+  train_accuracy 0\.\d+  .*val_accuracy 0\.\d+", line
        )
    assert re.match(r"test accuracy 0\.\d{4} \(450 images\)", lines[3])
    assert len(lines) == 4


def test_eval_of_the_directory_is_the_test_accuracy(run_dir, capsys):
    assert main(["eval", str(run_dir)]) == 0
    expected = json.loads((run_dir / "summary.json").read_text())["test_accuracy"]
    assert accuracy(capsys.readouterr().out) == pytest.approx(expected, abs=5e-5)


def test_eval_in_another_precision(run_dir, capsys, monkeypatch):
    seen = []
    predict = prediction.predict
    monkeypatch.setattr(prediction, "predict", lambda *args: seen.append(predict(*args)) or seen[-1])
    assert main(["eval", str(run_dir), "--precision=bf16-mixed"]) == 0
    assert accuracy(capsys.readouterr().out) > 0.3
    assert {output.dtype for output in seen} == {torch.bfloat16}


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_exported_file_predicts_what_the_run_predicts(tmp_path, run_dir, capsys, checkpoint):
    file = tmp_path / "net.safetensors"
    assert main(["export", str(run_dir), "--to", str(file), "--checkpoint", checkpoint]) == 0
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size:,} bytes\n"
    assert main(["eval", str(file)]) == main(["eval", str(run_dir), "--checkpoint", checkpoint]) == 0
    packed, trained = capsys.readouterr().out.splitlines()
    assert packed == trained
    ours, theirs = (outcome.open_for_evaluation(source, checkpoint=checkpoint) for source in (run_dir, file))
    x, _ = ours.data.collate([ours.data.test[i] for i in range(100)])
    assert batches.predict(ours, x).equal(batches.predict(theirs, x))


@pytest.mark.parametrize("runtime", ["packed", "int8"])
def test_a_file_runs_live_and_is_as_right(tmp_path, run_dir, capsys, runtime):
    file = str(tmp_path / "net.safetensors")
    assert main(["export", str(run_dir), "--to", file]) == main(["eval", file]) == 0
    expected = accuracy(capsys.readouterr().out.splitlines()[1])
    assert main(["eval", file, "--stream", "--runtime", runtime]) == 0
    out = capsys.readouterr().out
    line = re.fullmatch(
        r"accuracy (\d\.\d{4}) \(450 test images of digits, live: one at a time, step by step,"
        r" median [\d.]+ ms a step\)\n",
        out,
    )
    assert float(line[1]) == pytest.approx(expected, abs=1e-4 if runtime == "packed" else 0.02)


def test_a_runtime_is_of_a_file(run_dir, capsys):
    assert main(["eval", str(run_dir), "--runtime", "int8"]) == 2
    assert "runtime='int8' is for a packed file" in capsys.readouterr().err


def test_the_runtimes_are_those_of_the_library():
    from sj_online.deploy.choose import RUNTIMES

    assert cli.RUNTIMES == RUNTIMES


def test_checkpoints_differ(run_dir):
    """The control: what is evaluated is the checkpoint asked for."""
    last, best = (outcome.open_for_evaluation(run_dir, checkpoint=which).net for which in ("last", "best"))
    counts = [net.features[0].norm.num_batches_tracked.item() for net in (last, best)]
    epoch = json.loads((run_dir / "summary.json").read_text())["best_epoch"]
    assert counts == [2 * 2 * (1077 // 64), epoch * 2 * (1077 // 64)]


def always(run, which, label):
    """Let a checkpoint of a run say one label whatever it sees."""
    path = run / f"{which}.ckpt"
    kept = state.read(path)
    name = [name for name in kept["net"] if name.endswith("bias")][-1]
    kept["net"][name] = 1000.0 * torch.eye(10)[label]
    state.write(path, kept)


@pytest.mark.parametrize("label", [3, 8])
def test_the_checkpoint_asked_for_is_evaluated_and_exported(tmp_path, run_dir, capsys, label):
    run, file = shutil.copytree(run_dir, tmp_path / "run"), str(tmp_path / "net.safetensors")
    always(run, "best", label)
    share = registry.get("data", "digits")().test.labels.count(label) / 450
    assert main(["eval", str(run), "--checkpoint=best"]) == 0
    assert main(["export", str(run), "--to", file, "--checkpoint=best"]) == main(["eval", file]) == 0
    best, _, packed = capsys.readouterr().out.splitlines()
    assert accuracy(best) == accuracy(packed) == pytest.approx(share, abs=5e-5)
    assert main(["export", str(run), "--to", file]) == main(["eval", file]) == main(["eval", str(run)]) == 0
    assert [accuracy(line) > 0.3 for line in capsys.readouterr().out.splitlines()[1:]] == [True, True]


def write_images(root, tested):
    """Two classes, black and red; so many of each to test."""
    for part in ("train", "test"):
        for label in range(2):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for index in range(4 if part == "train" else tested):
                Image.new("RGB", (8, 8), (255 * label, 0, 0)).save(folder / f"{index}.png")


def test_eval_takes_the_folder_of_the_data(tmp_path, capsys):
    """Those of the run, unless it is told of another folder."""
    write_images(tmp_path / "ours", 2), write_images(tmp_path / "theirs", 3)
    out, file = str(tmp_path / "run"), str(tmp_path / "net.safetensors")
    options = ["--dataset=image_folder", "--dataset.options={classes: 2, size: 8, validation: 0}", "--num_steps=1"]
    options += ["--dataset.augment=[]", "--model.options.width=4", "--train.epochs=1", "--train.batch_size=8"]
    assert main(["train", "--out", out, "--data", str(tmp_path / "ours"), *options]) == 0
    assert main(["export", out, "--to", file]) == 0
    capsys.readouterr()
    theirs = ["--data", str(tmp_path / "theirs")]
    assert main(["eval", out]) == main(["eval", out, *theirs]) == main(["eval", file, *theirs]) == 0
    counts = [line.split("(")[1] for line in capsys.readouterr().out.splitlines()]
    assert counts == [f"{count} test images of image_folder)" for count in (4, 6, 6)]


def test_exported_file_holds_bits_and_no_path(tmp_path, run_dir):
    file = tmp_path / "net.safetensors"
    assert main(["export", str(run_dir), "--to", str(file)]) == 0
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["sj_online"])
    packed = [tensor.nbytes for name, tensor in load_file(file).items() if name.endswith(".packed")]
    assert sorted(packed) == [4 * 8 * 9 / 8, 8 * 16 * 9 / 8]
    assert header["metadata"] == {"dataset": {"name": "digits", "options": {}}, "num_steps": 2}


def test_packed_size_bound(tmp_path, run_dir):
    """Binary weights / 8 + 4 bytes per output channel + the other tensors + 128 bytes per tensor + 4 KiB."""
    file = tmp_path / "net.safetensors"
    assert main(["export", str(run_dir), "--to", str(file)]) == 0
    state = outcome.open_for_evaluation(run_dir).net.state_dict()
    binary = [state.pop(f"features.{i}.conv.weight") for i in (3, 6)]
    bound = sum(weight.numel() / 8 + 4 * len(weight) for weight in binary)
    bound += sum(tensor.nbytes for tensor in state.values())
    assert file.stat().st_size <= bound + 128 * (len(state) + 2 * len(binary)) + 4096


def test_list_shows_every_name_with_its_paper_or_what_it_is(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for group in registry.GROUPS:
        assert f"{group}\n" in out
        for name in own(group):
            what = re.search(rf"^  {name} +(.*)$", out, re.M)[1]
            assert not what.startswith(("-", "cannot be"))


def test_list_of_recipes_is_the_table_of_the_papers_rows(capsys, monkeypatch):
    rows = {
        "mine": {"base": "digits", "paper": {"table": "Mine, Table 1", "row": "SLTT", "accuracy": 98.5}},
        "theirs": {"base": "nothing"},
    }
    monkeypatch.setattr(reader, "names", lambda: ["digits", *rows])
    source = reader.source
    monkeypatch.setattr(reader, "source", lambda name: rows.get(name) or source(name))
    assert main(["list", "recipes"]) == 0
    digits, mine, theirs = capsys.readouterr().out.splitlines()[1:]
    assert digits.split() == ["digits", "-"]
    assert re.fullmatch(r"  mine +Mine, Table 1 +SLTT +98\.50 %", mine)
    assert re.match(r"  theirs +cannot be read: base='nothing' is not one of the known recipes", theirs)


def test_list_of_one_group_with_third_parties(capsys, monkeypatch):
    class Theirs:
        pass

    def get(group, name):
        if name == "broken":
            raise ImportError("no such module")
        return Theirs

    monkeypatch.setattr(registry, "names", lambda group: ["broken", "theirs"])
    monkeypatch.setattr(registry, "get", get)
    assert main(["list", "neurons"]) == 0
    broken, theirs = capsys.readouterr().out.splitlines()[1:]
    assert re.fullmatch(r"  broken +cannot be imported: no such module", broken)
    assert re.fullmatch(r"  theirs +of test_app_commands", theirs)


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["export"], ["list"]])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0
    assert "usage: sj-online" in capsys.readouterr().out


def test_every_argument_says_what_it_is():
    (commands,) = (action.choices for action in cli._parser()._actions if isinstance(action.choices, dict))
    assert set(commands) == {"train", "eval", "export", "list", "report", "bench"}
    for command in commands.values():
        assert [action.dest for action in command._actions if not action.help] == []


def test_export_is_told_where_to(run_dir, capsys):
    assert main(["export", str(run_dir)]) == 2
    assert capsys.readouterr().err == "sj-online: error: the following arguments are required: --to\n"


def test_a_reader_that_has_had_enough_sees_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        "-c",
        "import sys; from sj_online.app.cli import main; sys.exit(main(['list', 'neurons']))",
    ]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")


def test_interrupt(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_rehearsal_leaves_nothing_and_prints_what_it_costs(tmp_path, monkeypatch, tiny, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--rehearse", *tiny]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^parameters +1,714$", out, re.M)
    assert re.search(r"^saved for backward +\d+\.\d MB at 64 samples a batch$", out, re.M)
    assert re.search(r"^peak memory +[\d,]+\.\d MB$", out, re.M)
    assert re.search(r"^seconds a batch +\d+\.\d{3} on cpu$", out, re.M)
    assert list(tmp_path.iterdir()) == []
