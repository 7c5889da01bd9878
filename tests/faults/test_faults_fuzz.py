"""Every parser against hypothesis and a sample of the harness; the harness against parsers that are broken."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults import harness_fuzz
from tests.faults.fuzz_broken import BROKEN, HIDDEN
from tests.faults.fuzz_parsers import Parser, parsers

EXAMPLES, SAMPLE = 40, 12_000


def damaged(seeds: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Give inputs that were real: with octets taken out and others put in, once or twice."""
    patch = st.tuples(st.integers(0, 4000), st.integers(0, 20), st.binary(max_size=20))
    return st.builds(_patched, seeds, st.lists(patch, min_size=1, max_size=2)) | st.binary(max_size=200)


def _patched(octets: bytes, patches: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, added in patches:
        start = place % (len(octets) + 1)
        octets = octets[:start] + added + octets[start + removed :]
    return octets


@pytest.mark.parametrize("parser", parsers(), ids=lambda parser: cast("Parser", parser).name)
def test_a_parser_raises_the_errors_that_it_names_and_no_others(parser: Parser) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(damaged(st.sampled_from(list(parser.seeds()))))
    def feed(octets: bytes) -> None:
        try:
            parser.parse(octets)
        except parser.errors:
            return

    feed()


def test_every_parser_but_those_of_one_form_takes_a_real_input() -> None:
    """A seed that is refused at the first octet leads nowhere."""
    refused = []
    for parser in parsers():
        taken = 0
        for octets in parser.seeds():
            try:
                parser.parse(octets)
            except parser.errors:
                continue
            taken += 1
        if not taken:
            refused.append(parser.name)
    assert refused == []


@pytest.mark.parametrize("name", ["tls peer", "certificates"])
def test_a_certificate_of_a_version_that_is_none_is_refused(name: str) -> None:
    (parser,) = (one for one in parsers() if one.name == name)
    version = bytes.fromhex("a003020102")
    altered = parser.seeds()[0].replace(version, version[:-1] + b"\x12", 1)
    with pytest.raises(parser.errors):
        parser.parse(altered)


@pytest.mark.slow
def test_a_sample_of_the_harness_finds_nothing_but_what_is_broken_on_purpose() -> None:
    report = harness_fuzz.run(SAMPLE, seed=1)

    assert report.violations == ()
    assert report.hits > SAMPLE
    assert report.found >= len(BROKEN) + (len(HIDDEN) if harness_fuzz.guided() else 0)
