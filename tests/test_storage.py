"""Atomic files and scratch folders, kills included."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adaptseg import storage
from adaptseg.errors import AdaptSegError


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    storage.atomic_write(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    storage.atomic_write(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_honours_the_umask(tmp_path: Path):
    # A temporary file of mode 0600 would hide the run from the group.
    (tmp_path / "plain").write_bytes(b"")
    storage.atomic_write(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path):
    path = tmp_path / "state"
    storage.atomic_write(path, "old")
    with pytest.raises(TypeError):
        storage.atomic_write(path, 3)  # pyright: ignore[reportArgumentType]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KILL_IN_WRITE = """
import os, signal, sys
from pathlib import Path
from adaptseg import storage

root = Path(sys.argv[1])
for name in ("write", "fsync", "replace", "none"):
    path = root / name / "state"
    storage.atomic_write(path, "old")
    if os.fork():
        os.wait()
        continue
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "write":
        storage.synced_write = lambda path, data: (path.write_text("ne"), die())
    elif name != "none":
        setattr(os, name, die)
    storage.atomic_write(path, "new")
    os._exit(0)
"""


def test_kill_while_writing_leaves_old_or_new(tmp_path: Path):
    subprocess.run([sys.executable, "-c", KILL_IN_WRITE, str(tmp_path)], check=True)
    found = {folder.name: (folder / "state").read_text() for folder in tmp_path.iterdir()}
    assert found == {"write": "old", "fsync": "old", "replace": "old", "none": "new"}
    storage.atomic_write(tmp_path / "write" / "state", "later")  # what the dead process left is in nobody's way
    assert (tmp_path / "write" / "state").read_text() == "later"


def test_json_round_trip_and_errors(tmp_path: Path):
    path = tmp_path / "x.json"
    storage.atomic_json(path, {"b": [1, 2.5, None], "a": "ü"})
    assert storage.read_json(path) == {"b": [1, 2.5, None], "a": "ü"}
    with pytest.raises(AdaptSegError, match=r"absent\.json does not exist"):
        storage.read_json(tmp_path / "absent.json")
    with pytest.raises(AdaptSegError, match="cannot be read"):
        storage.read_json(tmp_path)
    for broken in (b"", b'{"a": 1', b"\xff\xfe\x00garbage"):
        path.write_bytes(broken)
        with pytest.raises(AdaptSegError, match=r"x\.json is truncated or broken"):
            storage.read_json(path)


def test_content_hash():
    assert storage.content_hash({"a": 1, "b": [1, 2]}) == storage.content_hash({"b": (1, 2), "a": 1})
    assert storage.content_hash({"a": {"x": 1, "y": 2}}) == storage.content_hash({"a": {"y": 2, "x": 1}})
    different = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": [1]}, {"a": True}, {"a": None}, {}, [], ["a", 1], [1, "a"]]
    assert len({storage.content_hash(obj) for obj in different}) == len(different)
    # Frozen: stored manifests and stage hashes depend on it. SHA-256 of '{"a":[1,"\\u00fc"]}'.
    assert storage.content_hash({"a": [1, "ü"]}) == "eadfa0001c9e4ce9"
    with pytest.raises(TypeError):
        storage.content_hash({"a": Path("x")})


def test_scratch_is_removed_also_after_an_error(tmp_path: Path):
    parent = tmp_path / "new" / "parent"
    with storage.scratch(parent, 10, "a test") as folder:
        assert folder.parent == parent
        assert folder.name.startswith(".scratch-")
        (folder / "sub").mkdir()
        (folder / "sub" / "map.bin").write_bytes(b"1234")
    assert list(parent.iterdir()) == []
    with pytest.raises(ZeroDivisionError), storage.scratch(parent, 0, "a test"):
        _ = 1 / 0
    assert list(parent.iterdir()) == []


def test_scratch_checks_the_free_space(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(AdaptSegError, match=r"scores of 3 images: [\d,]+\.\d GB of scratch needed .* free; .*--active"),
        storage.scratch(tmp_path, free + 10**12, "scores of 3 images"),
    ):
        pytest.fail("entered without room")
    assert list(tmp_path.iterdir()) == []


def test_scratch_message_has_readable_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 5_200_000))  # pyright: ignore
    with (
        pytest.raises(AdaptSegError, match=f"12.3 GB of scratch needed in {tmp_path}, 5.2 MB free"),
        storage.scratch(tmp_path, 12_345_678_901, "x"),
    ):
        pass


def test_two_scratches_in_one_process_do_not_meet(tmp_path: Path):
    with storage.scratch(tmp_path, 0, "one") as one, storage.scratch(tmp_path, 0, "two") as two:
        (one / "map").touch()
        assert one != two
        assert (one / "map").exists()


HOLD_SCRATCH = """
import sys, time
from adaptseg import storage
with storage.scratch(sys.argv[1], 0, "child") as folder:
    (folder / "map").write_bytes(b"1")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_scratch_of_a_killed_process_is_removed_and_of_a_living_one_kept(tmp_path: Path):
    (tmp_path / "bystander").touch()
    (tmp_path / ".scratch-otherhost-abc").mkdir()  # a machine we cannot see into
    with subprocess.Popen([sys.executable, "-c", HOLD_SCRATCH, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        held = Path(child.stdout.readline().decode().strip())
        with storage.scratch(tmp_path, 0, "while alive"):
            assert (held / "map").exists()
        assert (held / "map").exists()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert held.exists()
        with storage.scratch(tmp_path, 0, "after the kill"):
            assert not held.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scratch-otherhost-abc", "bystander"]


RACE = """
import sys
from adaptseg import storage
for _ in range(200):
    with storage.scratch(sys.argv[1], 0, "race") as folder:
        (folder / "map").write_bytes(b"1")
        assert (folder / "map").read_bytes() == b"1"
"""


def test_processes_that_start_together_never_remove_a_living_folder(tmp_path: Path):
    children = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)]) for _ in range(4)]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    assert list(tmp_path.iterdir()) == []
