"""Hostile texts: recipes, edits of a packed file's header, and mutants of both."""

import json
import random

PAYLOAD = "import pathlib; pathlib.Path('hacked').touch()"
RUN = {"class_path": "builtins.exec", "init_args": {"source": PAYLOAD}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "hacked"]}}
ODD = [-1, 0, 1e9, 1e400, float("nan"), -float("inf"), 10**12, 10**32, 10**400, None, True, "x", [], {}, RUN, POPEN]
BROKEN = [b"&x ", b"*x", b"!!python/name:os.system ", b"{", b"}", b"[", b":", b"\n", b"\0", b"\xff", b"9", b"-", b"'"]

# Each of these must be refused.
WRITTEN = [
    "seed: !!python/object/apply:os.system [touch hacked]",
    f"seed: !!python/object/apply:builtins.exec [\"{PAYLOAD}\"]",
    "!!python/object/new:subprocess.Popen [[touch, hacked]]",
    "model: !!python/name:os.system",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    "a: &a {b: *a}",
    "model: &m {name: small_vgg, options: *m}",
    "seed: 1\nseed: 2",
    "train: {epochs: 1, epochs: 2}",
    "[" * 30_000,
    "{a: " * 15_000,
    "- " * 30_000,
    "? " * 30_000,
    "'" * 60_001,
    "x" * 70_000,
    "{" * 5 + ":" * 5000,
    "\x00",
    "",
    "null",
    "3",
    "[]",
    "--- {}\n--- {}",
    "%YAML 9.9\n---\nseed: 1",
    "include: /etc/passwd",
    "base: /etc/passwd",
    "base: /dev/zero",
    "base: ../digits",
    "base: [digits]",
    "base: {base: digits}",
    "__class__: x",
    "class_path: subprocess.Popen",
    json.dumps(POPEN),
    json.dumps({"model": POPEN}),
    json.dumps({"model": {"name": "small_vgg", "options": POPEN}}),
    json.dumps({"model": {"name": "small_vgg", "options": {"neuron": RUN}}}),
    json.dumps({"model": {"name": "small_vgg", "options": {"plan": [RUN]}}}),
    json.dumps({"model": {"name": "small_vgg", "options": {"neuron_options": {"decay": RUN}}}}),
    json.dumps({"dataset": RUN}),
    json.dumps({"dataset": {"name": "digits", "options": RUN}}),
    json.dumps({"dataset": {"augment": [RUN]}}),
    json.dumps({"dataset": {"augment": [{"name": "Lambda", "options": {"lambd": "os.system"}}]}}),
    json.dumps({"dataset": {"batch": [{"name": "subprocess.Popen", "options": {"args": ["touch", "hacked"]}}]}}),
    *(
        json.dumps({"train": {key: value}})
        for key in ("rule", "loss", "optimizer", "schedule")
        for value in (RUN, {"name": "os.system"}, {"name": "builtins:exec", "options": {"source": PAYLOAD}}, [RUN])
    ),
    json.dumps({"train": {"rule": {"name": "sltt", "options": RUN}}}),
    json.dumps({"train": {"rule": {"name": "sltt", "options": {"loss_fn": RUN}}}}),
    json.dumps({"train": {"rule": {"name": "random_bp", "options": {"generator": RUN}}}}),
    json.dumps({"train": {"optimizer": {"name": "sgd", "options": {"lr": RUN}}}}),
    json.dumps({"train": {"schedule": {"name": "LambdaLR", "options": {"lr_lambda": RUN}}}}),
    json.dumps({"train": {"callbacks": [POPEN]}}),
    json.dumps({"train": {"callbacks": [{"name": "subprocess.Popen", "options": {"args": ["touch", "hacked"]}}]}}),
    json.dumps({"start": {"run": "/dev/zero"}}),
    json.dumps({"start": {"run": ".", "convert": {"name": "os.system", "options": {"command": "touch hacked"}}}}),
    json.dumps({"start": {"run": "x", "convert": {"name": "inspect", "options": RUN}}}),
    "train: {workers: 1000000000000}",
    "fabric: {devices: 100000000000000000000000000000000}",
    "fabric: {devices: 1000, accelerator: cpu}",
    "fabric: {threads: 1000000}",
    "fabric: {nodes: 1000000000}",
    "train: {epochs: 1000000000}",
    "train: {batch_size: 100000000000}",
    "num_steps: 1000000000000",
    "seed: .nan",
    "train: {clip: .inf}",
    f"seed: {'9' * 6000}",
    "model: {name: small_vgg, options: {width: 1000000000000}}",
    "model: {name: small_vgg, options: {width: 400000}}",
]  # fmt: skip


def mutant(seed):
    """The default recipe with a few values exchanged, as plain values or, for odd seeds, with its text broken."""
    draw = random.Random(seed)
    values = {
        "num_steps": 2,
        "model": {"name": "small_vgg", "options": {"width": 4}},
        "dataset": {"name": "digits", "root": None, "augment": [{"name": "pad_and_crop", "options": {"padding": 1}}]},
        "train": {
            "rule": {"name": "sltt", "options": {"update": "step", "step_scale": "sum"}},
            "loss": {"name": "cross_entropy", "options": {"label_smoothing": 0.1}},
            "optimizer": {"name": "sgd", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
            "schedule": "cosine",
            "epochs": 2,
            "batch_size": 64,
            "workers": 0,
        },
        "fabric": {"threads": 1, "devices": 1},
    }
    if seed % 2:
        text = bytearray(json.dumps(values), "utf8")
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(text))
            text[place : place + draw.randint(0, 3)] = draw.choice(BROKEN)
        return bytes(text)
    for _ in range(draw.randint(1, 3)):
        exchange(values, draw)
    return json.dumps(values).replace("Infinity", "1e999").encode()


def exchange(values, draw):
    """Set one value anywhere to something odd."""
    table = values
    while True:
        key = draw.choice(list(table))
        below = [value for value in (table[key] if isinstance(table[key], list) else [table[key]]) if value]
        if draw.random() < 0.3 or not below or not isinstance(below[0], dict):
            table[key] = draw.choice(ODD)
            return
        table = below[0]


HEADERS = [
    lambda h: h.update(model="os:system"),
    lambda h: h.update(model=RUN),
    lambda h: h.update(model="subprocess.Popen", kwargs={"args": ["touch", "hacked"]}),
    lambda h: h["kwargs"].update(POPEN),
    lambda h: h["kwargs"].update(neuron=RUN),
    lambda h: h["kwargs"].update(plan=[RUN]),
    lambda h: h["kwargs"].update(neuron_options={"decay": RUN}),
    lambda h: h["kwargs"].update(width=10**12),
    lambda h: h["kwargs"].update(width=400_000),
    lambda h: h["kwargs"].update(num_steps=10**12),
    lambda h: h["metadata"].update(POPEN),
    lambda h: h["metadata"].update(dataset=POPEN),
    lambda h: h["metadata"].update(dataset=[POPEN]),
    lambda h: h["metadata"]["dataset"].update(name="subprocess.Popen", options={"args": ["touch", "hacked"]}),
    lambda h: h["metadata"]["dataset"].update(options=POPEN),
    lambda h: h["metadata"]["dataset"].update(options={"root": "/", "download": True}),
    lambda h: h["metadata"].update(num_steps=10**12),
    lambda h: h["metadata"].update(num_steps=-1),
    lambda h: h["metadata"].update(num_steps=float("nan")),
    lambda h: h["metadata"].update(num_steps=None),
]
