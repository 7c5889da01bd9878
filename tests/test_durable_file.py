"""Files are whole or not there, whoever is killed while writing them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hsmkm.durable_file import _syncfs_tells_errors, create_secret_file, replace_file, replace_files
from hsmkm.errors import InputError, RefusedError


def test_what_a_crash_left_under_the_temporary_name_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".list.crl.new").write_bytes(b"half of something longer")
    replace_file(tmp_path / "list.crl", b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"list.crl": b"whole"}


def test_several_that_write_one_file_leave_it_whole(tmp_path: Path) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=replace_file, args=(tmp_path / "file", each)) for each in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() in contents


def test_nothing_is_written_through_a_link_under_the_temporary_name(tmp_path: Path) -> None:
    target = tmp_path / "of-somebody-else"
    target.write_bytes(b"theirs")
    (tmp_path / ".file.new").symlink_to(target)
    with pytest.raises(InputError, match="cannot be written"):
        replace_file(tmp_path / "file", b"ours")
    assert target.read_bytes() == b"theirs"


def test_a_file_that_cannot_take_its_name_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        replace_file(tmp_path / "file", b"ours")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_secret_file_is_made_once_for_its_owner_alone_and_what_a_crash_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".key.pem.new").touch(0o600)
    create_secret_file(tmp_path / "key.pem", b"secret")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(RefusedError, match="already"):
        create_secret_file(tmp_path / "key.pem", b"another")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"key.pem": b"secret"}


def test_nothing_has_a_name_before_it_is_whole_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    synced = os.fsync

    def watched(descriptor: int) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    create_secret_file(tmp_path / "key.pem", b"secret")
    assert seen == [[".key.pem.new"], ["key.pem"]]


@pytest.mark.parametrize("count", [1, 3, 600])
def test_many_files_are_written_as_one_is(tmp_path: Path, count: int) -> None:
    (tmp_path / ".0.pem.new").write_bytes(b"what a crash left, and longer than the file")
    (tmp_path / "0.pem").write_bytes(b"older")
    files = {f"{number}.pem": f"content {number}".encode() for number in range(count)}
    replace_files(tmp_path, files)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("count", [2, 300])
def test_of_many_files_none_has_a_name_before_it_is_whole_and_none_is_left_half(tmp_path: Path, count: int) -> None:
    (tmp_path / "1.pem").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        replace_files(tmp_path, {f"{number}.pem": b"whole" for number in range(count)})
    assert not list(tmp_path.glob(".*"))
    assert all(path.is_dir() or path.read_bytes() == b"whole" for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("release", "tells"), [("5.7.19-generic", False), ("5.8.0", True), ("6.1.0-13-amd64", True), ("4", False)]
)
def test_all_files_are_synced_at_once_only_where_that_tells_of_a_failure(release: str, tells: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert _syncfs_tells_errors(release) is tells
