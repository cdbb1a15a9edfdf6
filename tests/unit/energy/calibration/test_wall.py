"""Files of loggers: their last line while they grow, their rows by timestamps afterwards."""

from datetime import datetime
from pathlib import Path

import pytest

from greenllm.energy.calibration.wall import FileWall, WallSample, parse_row

MOMENT = 1_790_000_000.0


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("1790000000,41.5", (MOMENT, 41.5)),
        ("1790000000.0;41.5", (MOMENT, 41.5)),
        ("1790000000000\t41.5", (MOMENT, 41.5)),
        ("1790000000 41.5", (MOMENT, 41.5)),
        ('"2026-09-21T14:13:20Z", "41.5 W"', (MOMENT, 41.5)),
        ("2026-09-21 14:13:20+00:00 41.5", (MOMENT, 41.5)),
        ("2026-09-21T16:13:20+02:00,41.5,231.2", (MOMENT, 41.5)),
        ("41.5", (None, 41.5)),
        ("41.5 W", (None, 41.5)),
        ("timestamp,watts", None),
        ("watts", None),
        ("", None),
        ("yesterday,41.5", None),
        ("1790000000,-3", None),
        ("1790000000,nan", None),
        ("inf,3", None),
        ("1790000000,", None),
        ("1790000000,2e9", None),
    ],
)
def test_rows(line: str, row: tuple[float | None, float] | None) -> None:
    assert parse_row(line) == row


def test_a_timestamp_without_a_zone_is_local_time() -> None:
    local = datetime.fromtimestamp(MOMENT).isoformat()
    assert parse_row(f"{local},41.5") == (MOMENT, 41.5)


def test_a_growing_file_is_read_by_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "plug.csv"
    path.write_text("timestamp,watts\n1,30\n")
    wall = FileWall(path)
    assert wall.poll(5.0) is None, "nothing new yet"
    with path.open("a") as file:
        file.write("2,41\n3,4")
        file.flush()
        assert wall.poll(6.0) == WallSample(6.0, 41.0), "the last line is not whole"
        file.write("2\n")
        file.flush()
        assert wall.poll(7.0) == WallSample(7.0, 42.0)
        assert wall.poll(8.0) is None


def test_rows_are_found_by_their_timestamps_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    wall = FileWall(path)
    assert (wall.poll(1.0), wall.between(0.0, 9.0)) == (None, []), "there is no file yet"
    path.write_text("timestamp,watts\n10,30\n20,31\n30,32\n40\n50,")
    assert wall.between(15.0, 60.0) == [WallSample(20.0, 31.0), WallSample(30.0, 32.0)]
