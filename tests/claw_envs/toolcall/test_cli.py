"""`python -m claw_envs toolcall verify`: sound rows, rows without an answer, and oracles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from claw_envs.__main__ import main


def test_rows_and_what_their_answers_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rows.jsonl"
    answers = ["4", "1,000", "0.5", "\\frac{\\sqrt{2}}{2}", "}{"]
    path.write_text(
        "".join(json.dumps({"problem": f"{i}?", "answer": a, "id": f"r{i}"}) + "\n" for i, a in enumerate(answers))
    )
    assert main(["toolcall", "verify", str(path)]) == 0
    said = capsys.readouterr().out
    assert "5 questions, each with an answer" in said
    assert "whole number 2, number 1, expression 1, text 1" in said
    assert "only to the letter: r4: '}{'" in said


def test_rows_without_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"problem": "?", "answer": 1}, {"problem": "?!", "id": "bare"}]))
    assert main(["toolcall", "verify", str(path)]) == 1
    assert "row 2 (bare): it has no answer" in capsys.readouterr().out


def test_generated_oracles_are_right(capsys: pytest.CaptureFixture[str]):
    assert main(["toolcall", "verify", "embedded/validation"]) == 0
    assert "0 whose oracle is not right" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["verify"], ["check", "x"], ["verify", "x", "speed=3"]])
def test_usage(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["toolcall", *argv]) == 2
    assert "usage: python -m claw_envs toolcall verify ROWS" in capsys.readouterr().err


def test_a_split_that_is_none(capsys: pytest.CaptureFixture[str]):
    assert main(["toolcall", "verify", "embedded/test"]) == 1
    assert "split 'test' is unknown" in capsys.readouterr().err
