from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.errors import InputError, LoginError
from hsmkm.token.uri import Pin, TokenUri, pin_descriptors, pin_state, read_pin

HERE = Path()


def test_the_example_of_rfc_7512_is_read() -> None:
    uri = TokenUri.parse(
        "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;serial=1234"
        "?module-path=/usr/lib/p11.so"
    )
    assert uri == TokenUri("The Software PKCS#11 Softtoken", "1234", "Snake Oil, Inc.", "1.0", "/usr/lib/p11.so")


@given(st.builds(TokenUri, st.text(min_size=1, max_size=32), st.text(max_size=16), st.text(max_size=32)))
def test_what_is_written_is_read_again(uri: TokenUri) -> None:
    assert TokenUri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        "token=a",
        "pkcs11:",
        "pkcs11:manufacturer=x",
        "pkcs11:slot-id=0;token=a",
        "pkcs11:token=a;object=key",
        "pkcs11:token=a;token=b",
        "pkcs11:token",
        "pkcs11:token=%ff",
        "pkcs11:token=a?pin-value=1234",
        "pkcs11:token=a?pin-source=file:/pin",
    ],
)
def test_what_does_not_name_a_token_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        TokenUri.parse(text)


def test_fields_that_are_empty_match_any_token() -> None:
    token = TokenUri("label", "serial", "maker", "model")
    assert TokenUri("label").matches(token)
    assert not TokenUri("label", "other").matches(token)


def test_a_pin_comes_from_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pin").write_bytes(b"1234\n")
    (tmp_path / "pin").chmod(0o600)
    monkeypatch.setenv("A_PIN", "1234")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    reader, writer = os.pipe()
    os.write(writer, b"1234\r\n")
    os.close(writer)
    sources = ["file:pin", f"file:{tmp_path}/pin", "env:A_PIN", "credential:pin", "command:cat pin", f"fd:{reader}"]
    assert [read_pin(source, tmp_path).reveal() for source in sources] == [b"1234"] * len(sources)
    os.close(reader)


def test_each_worker_of_a_process_finds_the_pin_in_an_open_file(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    path.write_bytes(b"1234\n")
    with path.open("rb") as file:
        assert [read_pin(f"fd:{file.fileno()}", tmp_path).reveal() for _ in range(2)] == [b"1234"] * 2


def test_a_pin_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    path.write_text("1234")
    for mode in (0o640, 0o604, 0o660, 0o700):
        path.chmod(mode)
        with pytest.raises(LoginError, match="others may read"):
            read_pin("file:pin", tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "1234",
        "pin:1234",
        "file:missing",
        "env:NOT_SET_ANYWHERE",
        "fd:x",
        "fd:999",
        "credential:pin",
        "command:",
        "command:false",
        "command:/no/such/program",
        "command:true",
        "command:'",
        "command:head -c 256 /dev/zero",
    ],
)
def test_a_source_that_gives_no_pin_is_a_login_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(LoginError) as caught:
        read_pin(source, tmp_path)
    assert "1234" not in repr(caught.value).replace(str(tmp_path), "")


def test_a_credential_is_a_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(LoginError, match="bare name"):
        read_pin("credential:../pin", HERE)


def test_a_command_is_read_by_no_shell(tmp_path: Path) -> None:
    assert read_pin("command:echo -n $HOME;id", tmp_path).reveal() == b"$HOME;id"


def test_a_pin_shows_itself_nowhere() -> None:
    pin = Pin(b"1234")
    assert "1234" not in f"{pin} {pin!r}"
    with pytest.raises(TypeError):
        pickle.dumps(pin)


def test_descriptors_of_pin_sources_are_named() -> None:
    assert pin_descriptors("fd:7", "file:pin", "fd:9") == (7, 9)


def test_a_changed_file_is_another_source_of_a_pin_and_tells_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    states = []
    for text in ("1234", "4321"):
        path.with_name("new").write_text(text)
        path.with_name("new").rename(path)
        with path.open("rb") as file:
            states += [pin_state("file:pin", tmp_path), pin_state(f"fd:{file.fileno()}", tmp_path)]
        assert pin_state("file:pin", tmp_path) == states[-2]
        os.utime(path, ns=(0, 0))
    assert len(set(states)) == len(states)
    for source in ("env:A_PIN", "credential:pin", "command:cat pin", "prompt:", "file:missing", "fd:999"):
        assert pin_state(source, tmp_path) == source
