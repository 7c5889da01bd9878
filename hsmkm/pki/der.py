"""The few DER forms that are put together from parts already encoded, and taken apart (ITU-T X.690 section 10)."""

from __future__ import annotations

_SHORT = 0x80
_LONGEST = 4
_DEEPEST = 32
_CONSTRUCTED = 0x20
_CONTEXT = 0x80
_MANY_OCTETS = 0x1F
_BOOLEAN, _INTEGER, _SEQUENCE, _SET = 0x01, 0x02, 0x30, 0x31


def element(tag: int, content: bytes) -> bytes:
    """Encode one element with a definite length in the fewest octets."""
    size = len(content)
    if size < _SHORT:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _SHORT | len(octets))) + octets + content


def sequence(*parts: bytes) -> bytes:
    """Encode a SEQUENCE of elements already encoded."""
    return element(0x30, b"".join(parts))


def bit_string(octets: bytes) -> bytes:
    """Encode a BIT STRING of whole octets."""
    return element(0x03, b"\0" + octets)


def octet_string(octets: bytes) -> bytes:
    """Encode an OCTET STRING."""
    return element(0x04, octets)


class Reader:
    """Reads elements one after another; ValueError for anything that is not DER or not the tag expected."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def take(self, tag: int) -> bytes:
        """Return the content of the next element, which must carry this tag of one octet."""
        found, inside, after = _header(self._octets, 0, len(self._octets))
        if found != tag:
            raise ValueError("not the expected element")
        content, self._octets = self._octets[inside:after], self._octets[after:]
        return content

    def inside(self, tag: int) -> Reader:
        """Return a reader for what lies in the next element."""
        return Reader(self.take(tag))

    def end(self) -> None:
        """Check that nothing is left."""
        if self._octets:
            raise ValueError("octets are left over")


def check_der(octets: bytes) -> None:
    """Check that the octets are one element in DER, and so are the elements in it; ValueError where they are not.

    Lengths are definite and the shortest, strings are in one piece, BOOLEAN and INTEGER are in their one form, sets are
    sorted, and nothing is nested deeper than 32. What an OCTET STRING holds is not looked at.
    """
    if _check_element(octets, 0, len(octets), 0) != len(octets):
        raise ValueError("octets are left over")


def _check_element(octets: bytes, start: int, end: int, depth: int) -> int:
    """Check the element that begins at `start`, and return where the next one does."""
    tag, inside, after = _header(octets, start, end)
    if not tag & _CONSTRUCTED:
        _check_value(tag, octets[inside : min(after, inside + 2)], after - inside)
        return after
    if depth >= _DEEPEST or (tag < _CONTEXT and tag not in (_SEQUENCE, _SET)):
        raise ValueError("nested too deeply, or a string in pieces")
    previous, place = b"", inside
    while place < after:
        following = _check_element(octets, place, after, depth + 1)
        if tag == _SET:
            if octets[place:following] < previous:
                raise ValueError("a set is not sorted")
            previous = octets[place:following]
        place = following
    return after


def _header(octets: bytes, start: int, end: int) -> tuple[int, int, int]:
    """Return the tag, where the value begins and where it ends; tags of one octet are all that is known here."""
    if end - start < 2 or octets[start] & _MANY_OCTETS == _MANY_OCTETS:  # noqa: PLR2004 - tag and length
        raise ValueError("no element")
    size, inside = octets[start + 1], start + 2
    if size >= _SHORT:
        count = size & ~_SHORT
        size, inside = int.from_bytes(octets[inside : inside + count], "big"), inside + count
        if not 0 < count <= _LONGEST or size < _SHORT or size.bit_length() <= 8 * (count - 1):
            raise ValueError("not the shortest definite length")
    if inside + size > end:
        raise ValueError("cut short")
    return octets[start], inside, inside + size


def _check_value(tag: int, first: bytes, size: int) -> None:
    """Check the values whose form DER fixes, by their first two octets."""
    if tag in (_SEQUENCE & ~_CONSTRUCTED, _SET & ~_CONSTRUCTED):
        raise ValueError("a structure without structure")
    if tag == _BOOLEAN and first not in (b"\0", b"\xff"):
        raise ValueError("not a boolean")
    if tag == _INTEGER and (not size or (size > 1 and (first[0], first[1] >= _SHORT) in ((0, False), (0xFF, True)))):
        raise ValueError("not the shortest number")
