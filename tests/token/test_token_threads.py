"""Several threads of one process work with one login: each through a session and buffers of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Thread
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import TokenUnreachableError
from hsmkm.token.types import KeyRole, Mac, Sealed, Use

if TYPE_CHECKING:
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.vault import Vault

THREADS = 6
ROUNDS = 40


def in_threads(vault: Vault, barrier: Barrier, guek: Sealed, gak: Sealed, number: int) -> list[object]:
    """Give what each round answers: MACs, and an APDU protected, which say whose buffer an answer came from."""
    barrier.wait()
    answers: list[object] = []
    for turn in range(ROUNDS):
        answers.append(vault.mac(b"%d/%d" % (number, turn)))
        with (
            vault.open(KeyRole.GUEK, guek, 0, Use.IN_USE) as key,
            vault.open(KeyRole.GAK, gak, 0, Use.IN_USE) as authentication,
            vault.cipher(key, authentication) as cipher,
        ):
            iv = number.to_bytes(4, "big") + turn.to_bytes(8, "big")
            answers.append(cipher.protect(iv, 0x30, b"", b"%d/%d" % (number, turn)))
        with vault.generate(KeyRole.MASTER, 0) as master, vault.generate(KeyRole.GUEK, 0) as born:
            assert len(vault.wrap(master, born)) == 24
    return answers


def sealed(vault: Vault, role: KeyRole) -> Sealed:
    with vault.generate(role, 0) as key:
        return vault.seal(key)


def test_threads_at_once_answer_as_one_after_the_other(vault: Vault) -> None:
    guek, gak = sealed(vault, KeyRole.GUEK), sealed(vault, KeyRole.GAK)
    alone = [in_threads(vault, Barrier(1), guek, gak, number) for number in range(THREADS)]
    barrier = Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        made = [pool.submit(in_threads, vault, barrier, guek, gak, number) for number in range(THREADS)]
        assert [each.result() for each in made] == alone


def test_each_thread_has_a_session_of_its_own_and_leaves_it_to_the_next(vault: Vault) -> None:
    barrier, own = Barrier(THREADS), vault.session.cryptoki

    def session(_: int) -> object:
        barrier.wait()
        return vault.session.cryptoki

    with ThreadPoolExecutor(THREADS) as pool:
        first = set(pool.map(session, range(THREADS)))
    with ThreadPoolExecutor(THREADS) as pool:
        again = set(pool.map(session, range(THREADS)))
    assert len(first | {own}) == THREADS + 1
    assert again == first
    assert vault.session.cryptoki is own


def test_a_key_outlives_the_thread_that_made_it(vault: Vault) -> None:
    made: list[KeyHandle] = []
    thread = Thread(target=lambda: made.append(vault.generate(KeyRole.MASTER, 0)))
    thread.start()
    thread.join()
    with made[0] as master, vault.generate(KeyRole.GUEK, 0) as guek:
        assert len(vault.wrap(master, guek)) == 24


def test_after_a_reconnection_each_thread_has_a_new_session(vault: Vault) -> None:
    with ThreadPoolExecutor(1) as pool:
        before: Mac = pool.submit(vault.mac, b"text").result()
        old = pool.submit(lambda: vault.session.cryptoki).result()
        vault.session.reconnect()
        assert pool.submit(vault.mac, b"text").result() == before
        assert pool.submit(lambda: vault.session.cryptoki).result() is not old


def test_a_closed_session_opens_none_for_a_thread(vault: Vault) -> None:
    vault.session.close()
    with ThreadPoolExecutor(1) as pool, pytest.raises(TokenUnreachableError, match="there is no session"):
        pool.submit(vault.mac, b"text").result()
    vault.session.reconnect()


def test_a_thread_turns_to_newer_keys_by_itself(vault: Vault) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: vault.storage_key).result() == 1
        vault.keyring.create_up_to(2)
        assert vault.storage_key == 2
        assert pool.submit(lambda: vault.storage_key).result() == 1
        pool.submit(vault.keyring.turn).result()
        assert pool.submit(lambda: vault.storage_key).result() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: vault.storage_key).result() == 2


def test_a_thread_at_work_under_retired_keys_is_told(vault: Vault) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: vault.storage_key).result() == 1
        vault.keyring.create_up_to(2)
        vault.keyring.destroy_before(2)
        with pytest.raises(TokenUnreachableError, match="was retired"):
            pool.submit(lambda: vault.storage_key).result()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: vault.storage_key).result() == 2


def is_worn(vault: Vault) -> bool:
    return vault.session.worn


def test_a_session_wears_with_the_keys_made_in_all_threads_and_a_reconnection_renews_it(vault: Vault) -> None:
    vault.session.profile = replace(vault.session.profile, recycle_after=vault.session.cryptoki.made + 4)
    with vault.generate_package_key() as package:
        lent = vault.lend(package)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            assert not is_worn(vault)
            pool.submit(lambda: vault.borrow(lent).destroy()).result()
    assert is_worn(vault)
    vault.session.reconnect()
    assert not is_worn(vault)
    vault.session.profile = replace(vault.session.profile, recycle_after=0)
    vault.generate_package_key().destroy()
    assert not is_worn(vault)
