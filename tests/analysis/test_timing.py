from sj_online.analysis import timing


def test_the_least_time_of_interleaved_rounds_counts(monkeypatch):
    calls, clock = [], [0.0]
    durations = {"a": iter([9.0, 3.0, 5.0]), "b": iter([1.0, 7.0, 6.0])}

    def run(name):
        calls.append(name)
        clock[0] += next(durations[name])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    seconds = timing.interleaved({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=2, warmup=1)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": 3.0, "b": 6.0}  # not the warm-up's 1.0
