import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from package_names import own
from safetensors import safe_open
from safetensors.torch import load_file

from sj_online import registry, run
from sj_online.cli import main


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
        assert re.fullmatch(
            rf"epoch {epoch}/2  loss \d\.\d{{4}}  accuracy 0\.\d{{4}}  val 0\.\d{{4}}  memory \d+\.\d+ [MG]B  .* s",
            line,
        )
    assert re.match(r"test accuracy 0\.\d{4} \(450 images\)", lines[3])
    assert len(lines) == 4


def test_progress_bar_on_a_terminal(tmp_path, tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(run, "tqdm", partial(run.tqdm, mininterval=0, miniters=1))  # redrawn however fast a batch is
    assert main(["train", "--out", str(tmp_path / "run"), *tiny]) == 0
    bar = capsys.readouterr().err
    assert "epoch 2/2" in bar
    assert re.search(r"loss=\d\.\d{4}, accuracy=0\.\d{4}, memory=\d+\.\d+ [MG]B", bar)


def test_eval_of_the_directory_is_the_test_accuracy(run_dir, capsys):
    assert main(["eval", str(run_dir)]) == 0
    expected = json.loads((run_dir / "summary.json").read_text())["test_accuracy"]
    assert accuracy(capsys.readouterr().out) == pytest.approx(expected, abs=5e-5)


def test_eval_in_another_precision(run_dir, capsys, monkeypatch):
    seen = []
    predict = run.Session.predict
    monkeypatch.setattr(run.Session, "predict", lambda self, x: seen.append(predict(self, x)) or seen[-1])
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
    ours, theirs = (run.open_run(source, checkpoint=checkpoint) for source in (run_dir, file))
    x = ours.splits.test.padded
    assert ours.predict(x).equal(theirs.predict(x))


def test_exported_file_holds_bits_and_no_path(tmp_path, run_dir):
    file = tmp_path / "net.safetensors"
    assert main(["export", str(run_dir), "--to", str(file)]) == 0
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["sj_online"])
    packed = [tensor.nbytes for name, tensor in load_file(file).items() if name.endswith(".packed")]
    assert sorted(packed) == [4 * 8 * 9 / 8, 8 * 16 * 9 / 8]
    assert header["metadata"]["recipe"]["dataset"]["root"] is None


def test_packed_size_bound(tmp_path, run_dir):
    """Binary weights / 8 + 4 bytes per output channel + the other tensors + 128 bytes per tensor + 4 KiB."""
    file = tmp_path / "net.safetensors"
    assert main(["export", str(run_dir), "--to", str(file)]) == 0
    state = run.open_run(run_dir).net.state_dict()
    binary = [state.pop(f"features.{i}.conv.weight") for i in (3, 6)]
    bound = sum(weight.numel() / 8 + 4 * len(weight) for weight in binary)
    bound += sum(tensor.nbytes for tensor in state.values())
    assert file.stat().st_size <= bound + 128 * (len(state) + 2 * len(binary)) + 4096


def test_list_shows_every_name_with_its_paper(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for group in registry.GROUPS:
        assert f"{group}\n" in out
        for name in own(group):
            paper = re.search(rf"^  {name} +(.*)$", out, re.M)[1]
            assert not paper.startswith(("-", "cannot be imported"))


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
    assert re.fullmatch(r"  theirs +-", theirs)


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["export"], ["list"]])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0
    assert "usage: sj-online" in capsys.readouterr().out


def test_a_reader_that_has_had_enough_sees_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "import sys; from sj_online.cli import main; sys.exit(main(['list', 'neurons']))"]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")


def test_interrupt(monkeypatch, tmp_path, tiny, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    assert main(["train", "--out", str(tmp_path / "run"), *tiny]) == 130
    assert capsys.readouterr().err.count("\n") == 1
