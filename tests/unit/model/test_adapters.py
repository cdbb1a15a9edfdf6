"""The registry: names, references, the budget and folders. Weights are made up; files are real."""

from __future__ import annotations

import gc
import hashlib
import random
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from greenllm.core import EVERYBODY, AdapterRef
from greenllm.model.adapter_folders import OWNER_NAME, AdapterNameError, keep_owner
from greenllm.model.adapters import AdapterRegistry, UnknownAdapterError
from greenllm.model.lora_config import CONFIG_NAME, WEIGHTS_NAME, AdapterError
from greenllm.model.lora_layout import LoraFacts
from tests.waiting import PATIENCE_S

SIZE = 100


@dataclass(frozen=True)
class Weights:
    """What the registry needs to see of an adapter."""

    digest: str
    num_bytes: int = SIZE


@dataclass
class Shelf:
    """Folders of adapters, and a count of how often each was read."""

    root: Path
    reads: list[str] = field(default_factory=list)
    gate: threading.Event | None = None
    meanwhile: list[Callable[[], object]] = field(default_factory=list)
    read_weights: list[weakref.ref[Weights]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.root / "home"

    def put(self, folder: Path, content: str = "", *, broken: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text("broken" if broken else "{}")
        (folder / WEIGHTS_NAME).write_text(content or folder.name)
        return folder

    def read(self, folder: Path) -> Any:
        self.reads.append(folder.name)
        if self.gate is not None:
            assert self.gate.wait(PATIENCE_S)
        self.inspect(folder)
        found = Weights(hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest())
        self.read_weights.append(weakref.ref(found))
        return found

    def inspect(self, folder: Path) -> LoraFacts:
        while self.meanwhile:
            self.meanwhile.pop()()
        try:
            config = (folder / CONFIG_NAME).read_text()
        except OSError as error:
            raise AdapterError(f"{folder} has no config") from error
        if config == "broken":
            raise AdapterError(f"{folder} is broken")
        return LoraFacts(4, SIZE // 4, ("q_proj",), "base")

    def registry(self, **options: Any) -> AdapterRegistry:
        known: dict[str, Any] = {"home": self.home, "roots": (self.root / "extra",)}
        return AdapterRegistry(self.read, self.inspect, **{**known, **options})


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def names(registry: AdapterRegistry) -> list[str]:
    return [info.name for info in registry.list()]


def resident(registry: AdapterRegistry) -> list[str]:
    return [info.name for info in registry.list() if info.resident]


def use(registry: AdapterRegistry, name: str) -> AdapterRef:
    ref = registry.acquire(name)
    registry.release(ref)
    return ref


def test_adapters_at_home_are_known_without_being_read(shelf: Shelf) -> None:
    for name in ("b", "a"):
        shelf.put(shelf.home / name)
    registry = shelf.registry()
    assert (names(registry), resident(registry), shelf.reads) == (["a", "b"], [], [])
    ref = registry.acquire("a")
    assert registry.weights(ref.digest).digest == ref.digest
    assert ref.num_parameters == SIZE // 4
    assert (resident(registry), shelf.reads) == (["a"], ["a"])


def test_adapters_that_come_later_are_found_and_those_that_go_are_unknown(shelf: Shelf) -> None:
    registry = shelf.registry()
    with pytest.raises(UnknownAdapterError):
        registry.acquire("late")
    shelf.put(shelf.home / "late")
    use(registry, "late")
    shutil.rmtree(shelf.home / "late")
    with pytest.raises(UnknownAdapterError):
        registry.acquire("late")
    assert names(registry) == []


def test_a_broken_adapter_at_home_is_not_listed_and_says_why(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.put(shelf.home / "bad", broken=True)
    registry = shelf.registry()
    assert names(registry) == names(registry) == []
    assert len(caplog.records) == 1
    with pytest.raises(AdapterError, match="is broken"):
        registry.acquire("bad")
    shelf.put(shelf.home / "bad", "mended")
    use(registry, "bad")


def test_finding_reads_no_weights(shelf: Shelf) -> None:
    shelf.put(shelf.home / "fox")
    shelf.put(shelf.home / "bad", broken=True)
    registry = shelf.registry()
    found = registry.find("fox")
    assert (found.name, found.resident, shelf.reads) == ("fox", False, [])
    with pytest.raises(UnknownAdapterError):
        registry.find("owl")
    with pytest.raises(AdapterError, match="is broken"):
        registry.find("bad")


def test_add_reads_at_once_and_knows_where_from(shelf: Shelf) -> None:
    folder = shelf.put(shelf.root / "extra" / "x")
    registry = shelf.registry()
    info = registry.add("fox", folder)
    assert (info.name, info.folder, info.resident, info.in_flight) == ("fox", folder, True, 0)
    use(registry, "fox")
    assert shelf.reads == ["x"]


def test_a_name_that_is_taken_is_refused_and_nothing_changes(shelf: Shelf) -> None:
    one, other = (shelf.put(shelf.root / "extra" / name) for name in ("one", "other"))
    shelf.put(shelf.home / "at-home")
    registry = shelf.registry()
    registry.add("fox", one)
    digest = use(registry, "fox").digest
    for name, folder in (("fox", other), ("fox", one), ("at-home", one)):
        with pytest.raises(AdapterError, match="already loaded"):
            registry.add(name, folder)
    assert use(registry, "fox").digest == digest
    assert names(registry) == ["at-home", "fox"]


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".a", "a:b", "a b", "-a", "ä", "a\n", "x" * 129, "base", "a\0"]
)
def test_names_that_will_not_do(shelf: Shelf, name: str) -> None:
    folder = shelf.put(shelf.root / "extra" / "x")
    registry = shelf.registry(reserved={"base"})
    with pytest.raises(AdapterNameError):
        registry.add(name, folder)
    with pytest.raises(AdapterError):
        registry.acquire(name)
    assert names(registry) == []


def link(target: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


def test_paths_that_lead_outside_are_refused(shelf: Shelf) -> None:
    outside = shelf.put(shelf.root / "outside" / "x")
    inside = shelf.put(shelf.root / "extra" / "inside")
    half = shelf.put(shelf.root / "extra" / "half")
    (half / WEIGHTS_NAME).unlink()
    link(outside / WEIGHTS_NAME, half / WEIGHTS_NAME)
    registry = shelf.registry()
    for folder in (
        outside,
        inside / ".." / ".." / "outside" / "x",
        link(outside, shelf.root / "extra" / "link"),
        link(shelf.root / "extra" / "loop", shelf.root / "extra" / "loop") / "x",
        half,
        Path("/"),
        Path("x\0y"),
    ):
        with pytest.raises(AdapterError):
            registry.add("fox", folder)
    assert shelf.reads == []
    link(inside, shelf.root / "extra" / "fine")
    assert registry.add("fox", shelf.root / "extra" / "fine").folder == inside


def test_a_link_at_home_that_leads_outside_is_refused(shelf: Shelf) -> None:
    link(shelf.put(shelf.root / "outside" / "x"), shelf.home / "x")
    registry = shelf.registry()
    with pytest.raises(AdapterError, match="adapter_dirs"):
        registry.acquire("x")
    assert names(registry) == []


def test_a_folder_that_will_not_do_leaves_no_name(shelf: Shelf) -> None:
    folder = shelf.put(shelf.root / "extra" / "x", broken=True)
    registry = shelf.registry()
    for bad in (folder, shelf.root / "extra" / "nowhere"):
        with pytest.raises(AdapterError):
            registry.add("fox", bad)
    shelf.put(folder)
    assert registry.add("fox", folder).resident


def test_the_least_recently_used_leave_and_come_back(shelf: Shelf) -> None:
    for name in "abc":
        shelf.put(shelf.home / name)
    registry = shelf.registry(budget_bytes=2 * SIZE)
    for name in ("a", "b", "a", "c"):
        use(registry, name)
    assert resident(registry) == ["a", "c"]
    use(registry, "b")
    assert resident(registry) == ["b", "c"]
    assert shelf.reads == ["a", "b", "c", "b"]


def test_weights_in_use_stay_beyond_the_budget(shelf: Shelf) -> None:
    for name in "abc":
        shelf.put(shelf.home / name)
    registry = shelf.registry(budget_bytes=SIZE)
    refs = [registry.acquire(name) for name in "abc"]
    assert resident(registry) == ["a", "b", "c"]
    assert all(registry.weights(ref.digest) for ref in refs)
    for ref in refs:
        registry.release(ref)
    assert len(resident(registry)) == 1


def test_without_a_budget_nothing_stays_between_uses(shelf: Shelf) -> None:
    shelf.put(shelf.home / "a")
    registry = shelf.registry(budget_bytes=0)
    ref = use(registry, "a")
    with pytest.raises(AdapterError, match="not in memory"):
        registry.weights(ref.digest)
    assert use(registry, "a") == ref


def test_removing_what_is_in_use_lets_it_finish(shelf: Shelf) -> None:
    folder = shelf.put(shelf.root / "extra" / "x")
    registry = shelf.registry()
    registry.add("fox", folder)
    ref = registry.acquire("fox")
    registry.remove("fox")
    with pytest.raises(UnknownAdapterError):
        registry.acquire("fox")
    with pytest.raises(UnknownAdapterError):
        registry.remove("fox")
    assert registry.weights(ref.digest).digest == ref.digest
    registry.release(ref)
    with pytest.raises(AdapterError):
        registry.weights(ref.digest)


def test_another_adapter_under_the_name_of_one_in_use(shelf: Shelf) -> None:
    old, new = (shelf.put(shelf.root / "extra" / name) for name in ("old", "new"))
    registry = shelf.registry()
    registry.add("fox", old)
    first = registry.acquire("fox")
    registry.remove("fox")
    registry.add("fox", new)
    second = registry.acquire("fox")
    assert first.digest != second.digest
    assert registry.weights(first.digest).digest == first.digest
    registry.release(first)
    assert registry.weights(second.digest).digest == second.digest


def test_two_names_of_one_content_share_weights(shelf: Shelf) -> None:
    one, other = (shelf.put(shelf.home / name, "same") for name in ("one", "other"))
    assert one != other
    registry = shelf.registry()
    first, second = registry.acquire("one"), registry.acquire("other")
    assert first.digest == second.digest
    registry.remove("one")
    registry.release(first)
    assert registry.weights(second.digest)
    assert [(info.name, info.in_flight) for info in registry.list()] == [("other", 1)]


def test_an_adapter_removed_at_home_stays_unknown_until_it_changes(shelf: Shelf) -> None:
    folder = shelf.put(shelf.home / "fox")
    registry = shelf.registry()
    registry.remove("fox")
    assert names(registry) == []
    with pytest.raises(UnknownAdapterError):
        registry.acquire("fox")
    registry.add("fox", folder)
    registry.remove("fox")
    shelf.put(folder, "another content")
    assert names(registry) == ["fox"]


def test_removal_while_another_notices_it(shelf: Shelf) -> None:
    """Who saw the folder before the removal does not bring the name back after it."""
    shelf.put(shelf.home / "fox")
    registry = shelf.registry()
    shelf.meanwhile.append(lambda: registry.remove("fox"))
    with pytest.raises(UnknownAdapterError):
        registry.acquire("fox")
    assert names(registry) == []


def test_files_that_have_changed_are_refused(shelf: Shelf) -> None:
    folder = shelf.put(shelf.home / "fox", "old")
    registry = shelf.registry()
    ref = registry.acquire("fox")
    shelf.put(folder, "new!")
    with pytest.raises(AdapterError, match="have changed since it was loaded"):
        registry.acquire("fox")
    assert registry.weights(ref.digest).digest == ref.digest
    registry.release(ref)
    registry.remove("fox")
    registry.add("fox", folder)
    assert use(registry, "fox").digest != ref.digest


def test_files_that_were_only_touched_are_not(shelf: Shelf) -> None:
    folder = shelf.put(shelf.home / "fox", "same")
    registry = shelf.registry()
    ref = use(registry, "fox")
    (folder / WEIGHTS_NAME).unlink()
    shelf.put(folder, "same")
    assert use(registry, "fox") == use(registry, "fox") == ref
    assert shelf.reads == ["fox", "fox"]


def test_a_release_too_many_is_an_error(shelf: Shelf) -> None:
    shelf.put(shelf.home / "a")
    registry = shelf.registry()
    ref = use(registry, "a")
    with pytest.raises(ValueError, match="twice"):
        registry.release(ref)


def together(*acts: Callable[[], object]) -> list[object]:
    """Run acts at the same time; their results or their exceptions."""
    start = threading.Barrier(len(acts))

    def run(act: Callable[[], object]) -> object:
        start.wait(PATIENCE_S)
        try:
            return act()
        except AdapterError as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def test_an_adapter_many_ask_for_is_read_once(shelf: Shelf) -> None:
    shelf.put(shelf.home / "a")
    registry = shelf.registry()
    refs = together(*[lambda: registry.acquire("a")] * 8)
    assert len(set(refs)) == 1
    assert shelf.reads == ["a"]
    assert registry.list()[0].in_flight == 8


def test_of_two_that_add_one_name_one_is_refused(shelf: Shelf) -> None:
    folders = [shelf.put(shelf.root / "extra" / name) for name in ("x", "y")]
    registry = shelf.registry()
    results = together(*[lambda f=f: registry.add("fox", f) for f in folders])
    assert [isinstance(result, AdapterError) for result in results].count(True) == 1


def test_removal_while_it_is_read(shelf: Shelf) -> None:
    shelf.put(shelf.home / "a")
    shelf.gate = threading.Event()
    registry = shelf.registry()
    with ThreadPoolExecutor(1) as pool:
        acquiring = pool.submit(registry.acquire, "a")
        while not shelf.reads:
            pass
        registry.remove("a")
        shelf.gate.set()
        with pytest.raises(UnknownAdapterError):
            acquiring.result()
    assert registry.list() == ()


def test_threads_that_hammer_leave_nothing_behind(shelf: Shelf) -> None:
    """Acquire, check, release, add, remove and list at random, with room for two of six."""
    folders = {name: shelf.put(shelf.root / "extra" / name) for name in "abcdef"}
    registry = shelf.registry(budget_bytes=2 * SIZE)
    served = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            name = draw.choice("abcdef")
            try:
                if draw.random() < 0.2:
                    registry.remove(name)
                elif draw.random() < 0.4:
                    registry.add(name, folders[name])
                else:
                    ref = registry.acquire(name)
                    assert registry.weights(ref.digest).digest == ref.digest
                    registry.list()
                    registry.release(ref)
                    served.append(name)
            except AdapterError:
                continue

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(served) > 100
    assert all(info.in_flight == 0 for info in registry.list())
    assert len(resident(registry)) <= 2
    for name in names(registry):
        registry.remove(name)
    gc.collect()
    assert [weights for weights in shelf.read_weights if weights() is not None] == []


def test_adapters_are_everybodys_or_whose_they_are_said_to_be(shelf: Shelf) -> None:
    for name in ("common", "mine", "nobodys", "garbled"):
        shelf.put(shelf.home / name)
    keep_owner(shelf.home / "mine", "ada")
    keep_owner(shelf.home / "nobodys", None)
    (shelf.home / "garbled" / OWNER_NAME).write_text("{")
    registry = shelf.registry()
    registry.add("added", shelf.put(shelf.home / "later"), owner="bob")
    owners = {info.name: info.owner for info in registry.list()}
    assert owners == {
        "common": EVERYBODY, "later": EVERYBODY, "mine": "ada", "nobodys": None, "garbled": None,
        "added": "bob",
    }  # fmt: skip
    assert use(registry, "mine").owner == "ada"
    assert use(registry, "added").owner == "bob"
