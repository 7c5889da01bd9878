"""A sample of the crash harness, which scripts/faults runs whole; and what it must be able to see."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from tests.faults import harness_crash, tracing, wire
from tests.faults.tracing import Site

TITLE = bytes.fromhex("5554490000000004")


@pytest.mark.slow
def test_a_sample_of_crashes_breaks_no_promise_and_every_broken_variant_is_found_out() -> None:
    report = harness_crash.run(24, seed=1)
    assert report.violations == ()
    assert report.hits >= 20
    assert report.passed


def test_sites_are_the_calls_that_write_counted_with_those_that_do_not(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(
        "getpgid(0)                              = 4242 (INJECTED)\n"
        'openat(AT_FDCWD</>, "/etc/hosts", O_RDONLY) = 3</etc/hosts>\n'
        'openat(AT_FDCWD</>, "/h/packages/1.p7m.partial", O_WRONLY|O_CREAT, 0666) = 3</h/packages/1.p7m.partial>\n'
        'pwrite64(5</h/store.db-wal>, ""..., 24, 0) = 24\n'
        'pwrite64(5</h/store.db-wal>, ""..., 8192, 24) = 8192\n'
        'sendto(7<TCP:[127.0.0.1:1->127.0.0.1:2]>, ""..., 39, 0, NULL, 0) = 39\n'
    )
    assert tracing.sites(trace) == [
        Site("openat", 2, "partial package"),
        Site("pwrite64", 1, "store.db-wal"),
        Site("pwrite64", 2, "store.db-wal"),
        Site("sendto", 1, "meter"),
    ]
    assert not tracing.was_refused(trace)


def frame(apdu: bytes) -> bytes:
    return bytes.fromhex("000100010001") + len(apdu).to_bytes(2) + apdu


def ciphered(tag: int, keys: tuple[bytes, bytes], counter: int, plain: bytes) -> bytes:
    guek, gak = keys
    iv = counter.to_bytes(4)
    content = AESGCM(guek).encrypt(TITLE + iv, plain, b"\x30" + gak)[: len(plain) + 12]
    whole = b"\x30" + iv + content
    return bytes([tag, len(whole)]) + whole


def test_an_iv_is_told_by_its_key_and_a_key_that_travelled_is_known() -> None:
    guek, gak, master, fresh = (bytes([number]) * 16 for number in range(1, 5))
    carrying = b"\xc3\x01\x09\x18" + aes_key_wrap(master, fresh)
    stream = frame(ciphered(0xCB, (guek, gak), 7, carrying)) + frame(ciphered(0xC8, (fresh, gak), 7, b"again 7"))
    uses, unopened = wire.uses(TITLE, [stream], {guek, gak, master})
    assert (wire.repeated(uses), unopened, len(uses)) == ([], 0, 2)
    twice = stream + frame(ciphered(0xC8, (fresh, gak), 7, b"other"))
    assert wire.repeated(wire.uses(TITLE, [twice], {guek, gak, master})[0]) == [7]


def test_the_answer_to_a_challenge_uses_an_iv_too_and_an_unknown_key_is_counted() -> None:
    guek, gak = bytes([1]) * 16, bytes([2]) * 16
    answer = b"\xc3\x01\x09\x11\x10" + (8).to_bytes(4) + bytes(12)
    stream = frame(ciphered(0xCB, (guek, gak), 7, answer)) + frame(ciphered(0xC8, (guek, gak), 8, b"read"))
    assert wire.repeated(wire.uses(TITLE, [stream], {guek, gak})[0]) == [8]
    assert wire.uses(TITLE, [stream], {gak}) == ([], 2)
