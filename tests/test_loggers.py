"""metrics.csv: a resume continues the record, and every row is there once."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptseg.loggers import HEADER, CsvLogger


def written(folder: Path, *rows: tuple[int, str, float]) -> CsvLogger:
    logger = CsvLogger(folder)
    for step, name, value in rows:
        logger.log_metrics({name: value}, step)
    return logger


def rows(logger: CsvLogger) -> list[str]:
    text = logger.path.read_text()
    assert text.startswith(HEADER)
    assert text.endswith("\n")
    return text.splitlines()[1:]


def test_numbers_come_back_exactly_and_the_epoch_is_left_out(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "new" / "run")
    value = 0.1 + 0.2
    logger.log_metrics({"train/loss": value, "epoch": 3, "val/miou": float("nan")}, 7)
    assert rows(logger) == [f"7,train/loss,{value!r}", "7,val/miou,nan"]
    assert float(rows(logger)[0].split(",")[2]) == value
    assert Path(logger.save_dir) == tmp_path / "new" / "run"


def test_a_metric_named_with_a_comma_is_quoted(tmp_path: Path) -> None:
    logger = written(tmp_path, (1, "val/iou/bus, lorry", 0.5))
    assert rows(logger) == ['1,"val/iou/bus, lorry",0.5']
    logger.rewind(5)
    assert rows(logger) == ['1,"val/iou/bus, lorry",0.5']


def test_a_second_logger_appends(tmp_path: Path) -> None:
    written(tmp_path, (1, "a", 1.0))
    assert rows(written(tmp_path, (2, "a", 2.0))) == ["1,a,1.0", "2,a,2.0"]


def test_rewind_keeps_what_the_checkpoint_has_seen(tmp_path: Path) -> None:
    """Of a run that stopped after seven updates with a checkpoint after five: updates have the numbers 0 to 6, a round
    the number of updates before it."""
    logger = written(
        tmp_path,
        (3, "train/loss", 0.3),
        (4, "train/loss", 0.4),
        (4, "val/miou", 0.1),
        (5, "round/spent", 100.0),
        (5, "train/loss", 0.5),
        (6, "train/loss", 0.6),
    )
    logger.rewind(5)
    assert rows(logger) == ["3,train/loss,0.3", "4,train/loss,0.4", "4,val/miou,0.1", "5,round/spent,100.0"]
    logger.rewind(5)
    assert len(rows(logger)) == 4
    logger.rewind(0)
    assert rows(logger) == []


def test_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    logger = written(tmp_path, (9, "train/loss", 1.0), (10, "train/loss", 1.0), (100, "train/loss", 1.0))
    logger.rewind(50)
    assert len(rows(logger)) == 2


@pytest.mark.parametrize("torn", ["1", "10,", "10,trai", "10,train/loss,", "10,train/loss,0.12"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    logger = written(tmp_path, (9, "train/loss", 1.0))
    with logger.path.open("a") as file:
        file.write(torn)
    logger.rewind(20)
    logger.log_metrics({"train/loss": 2.0}, 10)
    assert rows(logger) == ["9,train/loss,1.0", "10,train/loss,2.0"]


@pytest.mark.parametrize("torn", ["", "step,met", HEADER])
def test_a_torn_or_missing_header_is_mended(tmp_path: Path, torn: str) -> None:
    logger = CsvLogger(tmp_path)
    logger.path.write_text(torn)
    logger.rewind(20)
    logger.log_metrics({"train/loss": 2.0}, 10)
    assert rows(logger) == ["10,train/loss,2.0"]


def test_an_empty_file_gets_its_header_without_a_rewind(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    assert rows(written(tmp_path, (1, "a", 1.0))) == ["1,a,1.0"]


def test_nothing_to_rewind(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.rewind(5)
    assert not logger.path.exists()
    logger.log_hyperparams({"a": 1})
    assert not logger.path.exists()
