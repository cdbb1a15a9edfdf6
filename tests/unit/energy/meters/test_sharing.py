"""Servers of one machine share its floor and its counters: each joule once, and none twice."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy.account.window import take_apart
from greenllm.energy.meters.protocol import Meter, Reading, ReplayMeter
from greenllm.energy.meters.roster import Roster, share_of
from greenllm.energy.meters.sharing import SharedMeter
from tests.waiting import PATIENCE_S

MEMBERS = "abc"
Event = tuple[float, str, str]


class Hand:
    """A clock that tests move; it is also who is dead."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.dead: set[str] = set()

    def clock(self) -> float:
        return self.now_s

    def is_alive(self, name: str) -> bool:
        return name.partition(":")[0] not in self.dead

    def join(self, path: Path, number: int) -> Roster:
        """A member whose name is made from a number that is no process."""
        pid = 2**30 + number
        return Roster(path, pid=pid, clock=self.clock, is_alive=self.is_alive)

    def kill(self, number: int) -> None:
        self.dead.add(str(2**30 + number))


def lines(path: Path) -> list[list[str]]:
    """The words of each line of a roster."""
    return [line.split() for line in path.read_text().splitlines() if line]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "machine.roster"


@pytest.fixture
def hand() -> Hand:
    return Hand()


def histories() -> st.SearchStrategy[list[tuple[float, str]]]:
    """Pauses, and who comes or goes after each."""
    pause_s = st.floats(0, 1e3, allow_subnormal=False)
    return st.lists(st.tuples(pause_s, st.sampled_from(MEMBERS)), max_size=20)


def events_of(history: Sequence[tuple[float, str]]) -> Iterator[Event]:
    """Comings and goings in turn, as a roster would have them."""
    at_s, present = 0.0, set[str]()
    for pause_s, who in history:
        at_s += pause_s
        yield at_s, "-" if who in present else "+", who
        present ^= {who}


def occupied_s(events: Sequence[Event], now_s: float) -> float:
    """For how long anybody was there."""
    total_s, since_s, present = 0.0, 0.0, set[str]()
    for at_s, _, who in [*events, (now_s, "", "")]:
        total_s += at_s - since_s if present else 0.0
        since_s = at_s
        present ^= {who} if who else set()
    return total_s


@given(histories(), st.floats(0, 1e3))
def test_shares_add_up_to_the_time_in_which_anybody_was_there(
    history: list[tuple[float, str]], after_s: float
) -> None:
    events = list(events_of(history))
    now_s = (events[-1][0] if events else 0.0) + after_s
    shares_s = [share_of(name, events, now_s) for name in MEMBERS]
    assert sum(shares_s) == pytest.approx(occupied_s(events, now_s), abs=1e-6)


@given(histories(), st.lists(st.floats(0, 100), max_size=10))
def test_shares_never_decrease(history: list[tuple[float, str]], pauses_s: list[float]) -> None:
    events = list(events_of(history))
    now_s = events[-1][0] if events else 0.0
    before = dict.fromkeys(MEMBERS, 0.0)
    for pause_s in pauses_s:
        now_s += pause_s
        shares = {name: share_of(name, events, now_s) for name in MEMBERS}
        assert all(shares[name] >= before[name] for name in MEMBERS)
        before = shares


@settings(max_examples=40)
@given(histories())
def test_rosters_on_one_file_share_every_moment_once(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[float, str]]
) -> None:
    hand, path = Hand(), tmp_path_factory.mktemp("roster") / "r"
    keeper = hand.join(path, 99)
    began_s, rosters, left_s = hand.now_s, dict[str, Roster](), 0.0
    for number, (pause_s, who) in enumerate(history):
        hand.now_s += pause_s
        if who in rosters:
            gone = rosters.pop(who)
            left_s += gone.seconds()[1]
            gone.leave()
        else:
            rosters[who] = hand.join(path, number)
    hand.now_s += 1.0
    shared_s = left_s + sum(roster.seconds()[1] for roster in (keeper, *rosters.values()))
    assert shared_s == pytest.approx(hand.now_s - began_s, abs=1e-6 * (1 + len(history)))


def test_a_member_has_all_of_the_floor_alone_and_half_of_it_with_another(
    hand: Hand, path: Path
) -> None:
    first = hand.join(path, 1)
    hand.now_s += 2.0
    assert first.seconds() == pytest.approx((102.0, 2.0))
    second = hand.join(path, 2)
    hand.now_s += 3.0
    assert first.seconds()[1] == pytest.approx(3.5)
    assert second.seconds()[1] == pytest.approx(1.5)


def test_a_dead_member_is_struck_off_once_somebody_looks(hand: Hand, path: Path) -> None:
    first, _ = hand.join(path, 1), hand.join(path, 2)
    hand.now_s += 4.0
    hand.kill(2)
    assert first.seconds()[1] == pytest.approx(2.0), "shared until it was noticed"
    hand.now_s += 3.0
    assert first.seconds()[1] == pytest.approx(5.0)
    assert lines(path)[-1][1:3] == ["-", f"{2**30 + 2}:gone"]


def test_who_comes_strikes_off_the_dead(hand: Hand, path: Path) -> None:
    hand.join(path, 1)
    hand.kill(1)
    second = hand.join(path, 2)
    hand.now_s += 0.5
    assert second.seconds()[1] == pytest.approx(0.5)


def test_members_look_for_the_dead_about_once_a_second(hand: Hand, path: Path) -> None:
    first, _ = hand.join(path, 1), hand.join(path, 2)
    hand.kill(2)
    for _ in range(9):
        hand.now_s += 0.1
        first.seconds()
    assert len(lines(path)) == 2
    hand.now_s += 0.2
    first.seconds()
    assert len(lines(path)) == 3


def test_the_last_member_takes_the_file_along_and_a_later_one_can_join(
    hand: Hand, path: Path
) -> None:
    first, second = hand.join(path, 1), hand.join(path, 2)
    first.leave()
    assert path.exists()
    second.leave()
    assert not path.exists()
    third = hand.join(path, 3)
    hand.now_s += 1.5
    assert third.seconds()[1] == pytest.approx(1.5)


def test_who_comes_while_the_last_one_goes_joins_a_file_that_stays(
    hand: Hand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[Roster] = []
    coming = threading.Thread(target=lambda: joined.append(hand.join(path, 1)))
    has_opened, lock = threading.Event(), fcntl.flock

    def tell_and_lock(file: int, operation: int) -> None:
        has_opened.set()
        lock(file, operation)

    with path.open("a") as going:
        lock(going, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", tell_and_lock)
        coming.start()
        assert has_opened.wait(PATIENCE_S)
        path.unlink()
    coming.join(PATIENCE_S)
    hand.now_s += 1.0
    assert joined[0].seconds()[1] == pytest.approx(1.0)


def test_who_has_left_gets_no_more(hand: Hand, path: Path) -> None:
    first, second = hand.join(path, 1), hand.join(path, 2)
    hand.now_s += 2.0
    first.leave()
    hand.now_s += 2.0
    assert first.seconds()[1] == pytest.approx(1.0)
    assert second.seconds()[1] == pytest.approx(3.0)


MEMBER = """
    import sys
    from pathlib import Path
    from greenllm.energy.meters.roster import Roster

    roster = Roster(Path(sys.argv[1]))
    print("here", flush=True)
    for line in sys.stdin:
        print(*roster.seconds(), flush=True)
    roster.leave()
"""


@contextmanager
def member(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process on the roster."""
    command = [sys.executable, "-c", textwrap.dedent(MEMBER), str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
        process.kill()


def test_two_processes_share_one_roster(path: Path) -> None:
    own = Roster(path)
    began_s = own.seconds()[0]
    with member(path) as other:
        told, _ = other.communicate("\n", timeout=PATIENCE_S)
        moment_s, others_s = (float(word) for word in told.split())
        now_s, own_s = own.seconds()
    assert began_s <= moment_s <= now_s, "one clock for both"
    came_s, joined_s, left_s = (float(line[0]) for line in lines(path))
    both_s = moment_s - joined_s
    assert others_s == pytest.approx(both_s / 2)
    assert own_s == pytest.approx(now_s - came_s - (left_s - joined_s) / 2)
    own.leave()
    assert not path.exists(), "the other had left by itself"


def test_a_killed_process_is_struck_off_even_before_it_is_waited_for(path: Path) -> None:
    with member(path) as other:
        now_s = time.monotonic()
        own = Roster(path, clock=lambda: now_s)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        now_s += 5.0
        own.seconds()
    (came, *_, went) = (line[1:3] for line in lines(path))
    assert (came[0], went) == ("+", ["-", came[1]])


class Whole:
    """A scripted machine that several servers meter, each with its own CPU time."""

    def __init__(self, hand: Hand, idle_w: Mapping[str, float] | None) -> None:
        self.hand = hand
        self.idle_w = idle_w
        self.joules = {"cpu": 50.0}
        self.cpu_s: dict[int, float] | None = {1: 3.0, 2: 5.0, 99: 7.0}

    def spend(self, seconds: float, cpu_j: float, cpu_s: Mapping[int, float]) -> None:
        """Let time pass; CPU seconds by server, 99 for other programs."""
        self.hand.now_s += seconds
        self.joules["cpu"] += cpu_j
        for number, used_s in cpu_s.items():
            assert self.cpu_s is not None
            self.cpu_s[number] += used_s

    def seen_by(self, number: int) -> Meter:
        return _Seen(self, number)


class _Seen:
    method = "measured:whole"
    measured = True
    period_s = 0.25
    uncertainty = 0.125
    lag_s = 0.0

    def __init__(self, whole: Whole, number: int) -> None:
        self.idle_w = whole.idle_w
        self._whole = whole
        self._number = number

    def read(self) -> Reading:
        whole = self._whole
        if whole.cpu_s is None:
            return Reading(whole.hand.now_s, dict(whole.joules))
        own_s, machine_s = whole.cpu_s[self._number], sum(whole.cpu_s.values())
        return Reading(whole.hand.now_s, dict(whole.joules), own_s, machine_s)


def two_meters(whole: Whole, path: Path) -> tuple[SharedMeter, SharedMeter]:
    rosters = [whole.hand.join(path, number) for number in (1, 2)]
    one, two = (SharedMeter(whole.seen_by(n), r) for n, r in zip((1, 2), rosters, strict=True))
    return one, two


def test_a_shared_meter_says_what_the_whole_one_does(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    meter = SharedMeter(whole.seen_by(1), hand.join(path, 1))
    told = (meter.method, meter.measured, meter.period_s, meter.uncertainty, meter.idle_w)
    assert told == ("measured:whole", True, 0.25, 0.125, {"cpu": 4.0})


def test_the_floor_is_split_equally_and_the_rest_by_cpu_time(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, two = two_meters(whole, path)
    whole.spend(2.0, 28.0, {1: 3.0, 2: 1.0, 99: 1.0})
    assert one.read().joules == pytest.approx({"cpu": 4.0 + 20.0 * 3 / 5})
    assert two.read().joules == pytest.approx({"cpu": 4.0 + 20.0 * 1 / 5})


def test_nobody_has_used_the_processor_where_no_cpu_time_has_passed(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, two = two_meters(whole, path)
    whole.spend(2.0, 28.0, {})
    assert [meter.read().total_j for meter in (one, two)] == pytest.approx([4.0, 4.0])


def test_where_cpu_times_are_not_told_everything_is_split_equally(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    whole.cpu_s = None
    one, two = two_meters(whole, path)
    whole.spend(2.0, 28.0, {})
    readings = [one.read(), two.read()]
    assert [reading.total_j for reading in readings] == pytest.approx([14.0, 14.0])
    assert readings[0].own_cpu_s is readings[0].machine_cpu_s is None


def test_a_meter_that_is_read_late_has_its_share_of_the_whole_time(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, two = two_meters(whole, path)
    for _ in range(4):
        whole.spend(1.0, 10.0, {1: 1.0})
        one.read()
    assert one.read().total_j == pytest.approx(4 * (2.0 + 6.0))
    assert two.read().total_j == pytest.approx(4 * 2.0)


def test_taken_apart_a_window_has_its_share_of_the_floor_and_nothing_foreign(
    hand: Hand, path: Path
) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, _ = two_meters(whole, path)
    whole.spend(1.0, 14.0, {1: 1.0, 99: 1.0})
    before = one.read()
    whole.spend(2.0, 28.0, {1: 3.0, 2: 1.0, 99: 1.0})
    window = take_apart(before, one.read(), {"cpu": 4.0})
    assert window.duration_s == 2.0
    assert window.idle_j == pytest.approx({"cpu": 4.0})
    assert window.active_j == pytest.approx({"cpu": 12.0})
    assert window.unattributed_j == 0


def test_a_floor_that_is_not_known_is_the_lowest_power_seen(hand: Hand, path: Path) -> None:
    whole = Whole(hand, None)
    one, two = two_meters(whole, path)
    assert one.idle_w is None
    whole.spend(1.0, 5.0, {})
    first = [one.read().total_j, two.read().total_j]
    assert first == pytest.approx([2.5, 2.5]), "a window with nothing else is all floor"
    whole.spend(1.0, 25.0, {1: 1.0})
    assert one.read().total_j == pytest.approx(2.5 + 2.5 + 20.0)
    assert two.read().total_j == pytest.approx(5.0)


def test_a_newcomer_knows_the_floor_that_others_have_seen(hand: Hand, path: Path) -> None:
    whole = Whole(hand, None)
    one, two = two_meters(whole, path)
    whole.spend(1.0, 5.0, {})
    one.read()
    two.read()
    third = SharedMeter(whole.seen_by(99), hand.join(path, 3))
    assert third.idle_w == pytest.approx({"cpu": 5.0})
    whole.spend(1.0, 25.0, {1: 1.0})
    before = 5.0
    assert one.read().total_j + two.read().total_j + third.read().total_j == pytest.approx(
        before + 25.0
    )


def test_a_roster_that_somebody_removes_is_begun_again(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, two = two_meters(whole, path)
    whole.spend(1.0, 4.0, {})
    assert one.read().total_j + two.read().total_j == pytest.approx(4.0)
    path.unlink()
    one.read()
    two.read()
    whole.spend(1.0, 4.0, {})
    assert [one.read().total_j, two.read().total_j] == pytest.approx([4.0, 4.0])


def test_half_a_line_is_passed_over(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, _ = two_meters(whole, path)
    with path.open("a") as stream:
        stream.write(f"\n{hand.now_s:.6f} + 12")
    hand.join(path, 3)
    whole.spend(3.0, 12.0, {})
    assert one.read().total_j == pytest.approx(4.0)


def test_while_a_roster_cannot_be_read_those_who_were_there_last_are_there(
    hand: Hand, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, two = two_meters(whole, path)
    one.read()
    path.unlink()
    path.mkdir()
    for _ in range(5):
        whole.spend(2.0, 8.0, {})
        one.read()
    assert one.read().total_j == pytest.approx(5 * 4.0)
    assert caplog.text.count("Is a directory") == 1
    path.rmdir()
    one.read()
    two.read()
    whole.spend(2.0, 8.0, {})
    assert one.read().total_j == pytest.approx(6 * 4.0)


def test_a_lock_that_is_never_let_go_stops_nobody(
    hand: Hand, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Whole(hand, {"cpu": 4.0})
    one, _ = two_meters(whole, path)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        hand.kill(2)
        for _ in range(3):
            whole.spend(2.0, 8.0, {})
            one.read()
        assert one.read().total_j == pytest.approx(3 * 4.0), "the dead cannot be struck off"
        with pytest.raises(BlockingIOError):
            hand.join(path, 3)
    assert "temporarily unavailable" in caplog.text
    whole.spend(2.0, 8.0, {})
    one.read()
    whole.spend(2.0, 8.0, {})
    assert one.read().total_j == pytest.approx(3 * 4.0 + 4.0 + 8.0)


GARBAGE = (
    "nan + 5:gone .",
    "1e300 + 5:gone .",
    "-3 + 5:gone .",
    "100.0 cpu watts .",
    "100.0 cpu -5 .",
    "100.0 cpu inf .",
    "words",
    "\x00\xff\ufffd",
    "1 2 3 4 5 .",
)


@pytest.mark.parametrize("line", GARBAGE)
def test_lines_that_mean_nothing_are_passed_over(hand: Hand, path: Path, line: str) -> None:
    whole = Whole(hand, None)
    one, _ = two_meters(whole, path)
    with path.open("a", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(f"\n{line}\n")
    whole.spend(2.0, 8.0, {})
    assert one.read().total_j == pytest.approx(4.0)


def test_a_name_that_is_no_process_is_struck_off(path: Path) -> None:
    now_s = time.monotonic()
    own = Roster(path, clock=lambda: now_s)
    with path.open("a") as stream:
        stream.write(f"\n{now_s:.6f} + somebody .\n")
    now_s += 5.0
    own.seconds()
    assert lines(path)[-1][1:3] == ["-", "somebody"]


def test_a_roster_stays_short_and_every_moment_is_shared_once(hand: Hand, path: Path) -> None:
    first = hand.join(path, 1)
    began_s, others_s = hand.now_s, 0.0
    for number in range(2, 1500):
        first.lowest_w("cpu", 7.5)
        hand.now_s += 0.5
        other = hand.join(path, number)
        hand.now_s += 1.0
        first.seconds()
        others_s += other.seconds()[1]
        other.leave()
    shared_s = first.seconds()[1] + others_s
    assert shared_s == pytest.approx(hand.now_s - began_s, rel=1e-3)
    assert path.stat().st_size < 20_000
    assert first.lowest_w("cpu") == 7.5
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_power_that_was_seen_once_is_forgotten_after_an_hour(hand: Hand, path: Path) -> None:
    """A counter that had slipped would else keep the floor down for ever."""
    first = hand.join(path, 1)
    assert first.lowest_w("cpu", 0.5) == 0.5
    hand.now_s += 1800.0
    assert first.lowest_w("cpu", 30.0) == 0.5
    hand.now_s += 1801.0
    assert first.lowest_w("cpu", 30.0) == 30.0
    assert hand.join(path, 2).lowest_w("cpu") == 30.0


def test_a_huge_file_of_garbage_is_not_read_whole(hand: Hand, path: Path) -> None:
    first = hand.join(path, 1)
    with path.open("a") as stream:
        stream.write("garbage\n" * 100_000)
    hand.now_s += 1.5
    first.seconds()
    hand.now_s += 1.5
    assert first.seconds()[1] == pytest.approx(3.0)
    assert path.stat().st_size < 20_000, "whoever writes begins a new one"


def test_who_is_alone_has_the_whole_machine(hand: Hand, path: Path) -> None:
    """As without a roster: what strangers do is told apart by the account."""
    whole = Whole(hand, None)
    one = SharedMeter(whole.seen_by(1), hand.join(path, 1))
    whole.spend(2.0, 28.0, {1: 3.0, 99: 1.0})
    reading = one.read()
    assert reading.joules == {"cpu": pytest.approx(28.0)}
    assert (reading.own_cpu_s, reading.machine_cpu_s) == (3.0, 4.0)
    told = one.idle_w
    assert told is None
    two = SharedMeter(whole.seen_by(2), hand.join(path, 2))
    whole.spend(2.0, 28.0, {1: 1.0, 2: 1.0, 99: 2.0})
    assert one.read().joules == {"cpu": pytest.approx(28.0 + 14.0)}
    told = one.idle_w
    assert told is not None
    assert dict(told) == {"cpu": pytest.approx(14.0)}
    assert two.read().joules["cpu"] == pytest.approx(14.0)


def test_training_is_paid_by_the_server_that_trains(hand: Hand, path: Path) -> None:
    records = [
        Reading(100.0, {"cpu": 0.0}, 0.0, 0.0),
        Reading(100.0, {"cpu": 0.0}, 0.0, 0.0),
        Reading(102.0, {"cpu": 28.0}, 1.0, 8.0, 3.0),
    ]
    roster, _ = hand.join(path, 1), hand.join(path, 2)
    meter = SharedMeter(ReplayMeter(records, idle_w={"cpu": 4.0}), roster)
    meter.read()
    hand.now_s += 2.0
    reading = meter.read()
    assert reading.total_j == pytest.approx(4.0 + 20.0 * 4 / 8)
    assert (reading.own_cpu_s, reading.train_cpu_s, reading.machine_cpu_s) == (1.0, 3.0, 4.0)


def test_a_domain_that_is_lost_is_not_in_the_readings(hand: Hand, path: Path) -> None:
    whole = Whole(hand, {"cpu": 4.0, "dram": 1.0})
    whole.joules["dram"] = 30.0
    one, _ = two_meters(whole, path)
    del whole.joules["dram"]
    whole.spend(2.0, 8.0, {})
    assert one.read().joules == {"cpu": pytest.approx(4.0)}
    whole.joules["dram"] = 90.0
    whole.spend(2.0, 8.0, {})
    assert one.read().joules["dram"] == 0.0, "what it counted meanwhile is unknown"


def test_a_short_window_tells_nothing_of_an_unknown_floor(hand: Hand, path: Path) -> None:
    whole = Whole(hand, None)
    one, _ = two_meters(whole, path)
    whole.spend(0.1, 5.0, {1: 1.0, 2: 3.0})
    assert one.read().total_j == pytest.approx(5.0 / 4)


spells = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.05, 0.5, 3.0]),
        st.floats(0, 100),
        st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2)),
        st.booleans(),
    ),
    max_size=15,
)


@settings(max_examples=60)
@given(spells, st.floats(0, 30), st.booleans())
def test_meters_read_at_the_same_moments_never_have_more_than_the_machine(
    tmp_path_factory: pytest.TempPathFactory,
    spells: list[tuple[float, float, tuple[float, float, float], bool]],
    idle_w: float,
    told: bool,
) -> None:
    hand = Hand()
    whole = Whole(hand, {"cpu": idle_w})
    if not told:
        whole.cpu_s = None
    meters = two_meters(whole, tmp_path_factory.mktemp("roster") / "r")
    first_j, before = whole.joules["cpu"], [0.0, 0.0]
    for seconds, cpu_j, used_s, is_read in spells:
        cpu_s = dict(zip((1, 2, 99), used_s, strict=True)) if told else {}
        whole.spend(seconds, cpu_j, cpu_s)
        if not is_read:
            continue
        now = [meter.read().total_j for meter in meters]
        assert all(later >= earlier for later, earlier in zip(now, before, strict=True))
        before = now
    together_j = sum(meter.read().total_j for meter in meters)
    assert together_j <= (whole.joules["cpu"] - first_j) * (1 + 1e-9) + 1e-9


def test_a_clock_that_stands_gives_nobody_a_floor(hand: Hand, path: Path) -> None:
    records = [Reading(5.0, {"cpu": 0.0}, 0.0, 0.0), Reading(5.0, {"cpu": 6.0}, 1.0, 2.0)]
    meter = SharedMeter(ReplayMeter(records, idle_w={"cpu": 3.0}), hand.join(path, 1))
    assert meter.read().total_j == pytest.approx(3.0)


def _recorded(hand: Hand, path: Path, *records: Reading) -> SharedMeter:
    return SharedMeter(ReplayMeter(records), hand.join(path, 1))


def test_a_counter_that_has_not_ticked_tells_no_floor_of_zero(hand: Hand, path: Path) -> None:
    meter = _recorded(
        hand,
        path,
        Reading(0.0, {"cpu": 0.0}, 0.0, 0.0),
        Reading(1.0, {"cpu": 0.0}, 0.5, 0.5),
        Reading(2.0, {"cpu": 20.0}, 1.0, 1.0),
    )
    waiting, ticked = meter.read(), meter.read()
    assert (waiting.total_j, waiting.own_cpu_s) == (0.0, 0.0)
    assert ticked.own_cpu_s == 1.0
    assert meter.idle_w == pytest.approx({"cpu": 10.0}), "20 J in two seconds"


def test_a_gap_tells_nothing_of_the_floor_and_is_passed_on(hand: Hand, path: Path) -> None:
    gaps = frozenset({"cpu"})
    meter = _recorded(
        hand,
        path,
        Reading(0.0, {"cpu": 0.0}),
        Reading(9.0, {"cpu": 1.0}, gaps=gaps),
        Reading(10.0, {"cpu": 6.0}),
    )
    assert meter.read().gaps == {"cpu"}
    assert not meter.read().gaps
    assert meter.idle_w == pytest.approx({"cpu": 5.0})


def test_a_domain_that_is_gone_is_not_in_the_share(hand: Hand, path: Path) -> None:
    both, one = {"cpu": 0.0, "dram": 0.0}, {"cpu": 5.0}
    meter = _recorded(hand, path, Reading(0.0, both), Reading(1.0, one))
    assert set(meter.read().joules) == {"cpu"}
