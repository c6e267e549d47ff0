from nystromformer.training.metrics import MetricsLog


def test_events_come_back_and_a_line_cut_short_is_skipped(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.events() == []
    log.append({"kind": "train", "step": 1, "loss": 2.0})
    log.append({"kind": "validation", "step": 2, "loss": 1.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [event["step"] for event in log.events()] == [1, 2]
    assert [event["loss"] for event in log.events("validation")] == [1.5]


def test_rewinding_forgets_later_steps_and_the_cut_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.append({"kind": "train", "step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("{")
    log.rewind(3)
    log.append({"kind": "train", "step": 4, "again": True})
    assert [event["step"] for event in log.events()] == [1, 2, 3, 4]
    assert log.events()[-1]["again"]
