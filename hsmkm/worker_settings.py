"""How many workers do bulk work with the token: the section `workers` of hsmkm.toml as values."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkm.bounds import outside

MOST = 256


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Worker processes of bulk work, the threads of each with a PKCS#11 session of its own, and meters in a batch.

    0 stands for what suits: a process for each core, the threads that the token's profile names, and batches of 500
    meters, or of 16 where several threads of a process wait for a token that is far away.
    """

    processes: int = 0
    threads: int = 0
    batch: int = 0

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        return outside(self, {"processes": MOST, "threads": MOST, "batch": 10_000}, least=0)
