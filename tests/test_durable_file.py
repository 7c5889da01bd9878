"""Files are whole or not there, whoever is killed while writing them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError


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
