"""Tests of the output of the demo."""

from projects.demo.walkthrough import StepPrinter


def test_a_step_shows_its_number_and_the_seconds_since_the_start(capsys):
    times = iter([100.0, 103.4])
    StepPrinter(steps=2, clock=lambda: next(times)).step("Train")
    assert capsys.readouterr().out.split() == ["[1/2]", "3", "s", "Train"]


def test_the_table_keeps_a_value_of_two_lines_in_its_column(capsys):
    StepPrinter(steps=1).table([("calm", "0 of 10"), ("summer", "10 of 10\nhttp://127.0.0.1")])
    assert capsys.readouterr().out.splitlines()[2:-1] == [
        "calm     0 of 10",
        "summer   10 of 10",
        "         http://127.0.0.1",
    ]
