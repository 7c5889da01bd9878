"""Modules that a command names without importing them: its worker needs what they hold, its own process does not.

The steps, and all that is under them, take most of a command's time to load, and nearly all of them run in the worker
alone. For the type checker a noun imports them; when it runs it only names them:

    if TYPE_CHECKING:
        from hsmkm.steps import certify
    else:
        (certify,) = deferred("hsmkm.steps", "certify")

`worker.call(certify.publish, ...)` sends the name, and the worker imports it; `certify.publish(...)` imports it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


def deferred(package: str, *names: str) -> tuple[DeferredModule, ...]:
    """Name modules of a package, each to be imported by whoever uses what it holds."""
    return tuple(DeferredModule(f"{package}.{name}") for name in names)


@dataclass(frozen=True, slots=True)
class DeferredModule:
    """A module that is not imported yet; what is asked of it is deferred too."""

    module: str

    def __getattr__(self, name: str) -> DeferredFunction:
        if name.startswith("__"):
            raise AttributeError(name)
        return DeferredFunction(self.module, name)


@dataclass(frozen=True, slots=True)
class DeferredFunction:
    """A function of such a module: a call imports it, pickle takes its name only."""

    module: str
    name: str

    def __call__(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - those of the function; mypy sees it itself
        """Import the function and call it."""
        return _load(self.module, self.name)(*args, **options)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        """Travel by name, and arrive as the function itself."""
        return _load, (self.module, self.name)


def _load(module: str, name: str) -> Any:  # noqa: ANN401 - as above
    return getattr(import_module(module), name)
