"""The stages of a renewal: in which order a meter of a model takes new keys, and what proves each of them."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkm.errors import RefusedError
from hsmkm.meter_model import MeterModel
from hsmkm.steps.credentials import Pair, refuse_unproved, secret_roles
from hsmkm.store.key_set import KeySet
from hsmkm.token.types import KeyRole, MeterRole, SecretRole


@dataclass(frozen=True, slots=True)
class Stage:
    """One key_transfer: the keys it carries, and whether the fresh master key wraps them; or one change of a secret."""

    roles: tuple[MeterRole, ...]
    under_fresh: bool = False

    @property
    def name(self) -> str:
        """The name in the store: roles with plus signs between, `probe` for the GBEK under the fresh master key."""
        return "probe" if self.under_fresh else "+".join(role.value for role in self.roles)

    @property
    def proved_by_association(self) -> bool:
        """Tell whether a new association shows that the meter took the keys."""
        return any(role in (KeyRole.GUEK, KeyRole.GAK, *SecretRole) for role in self.roles)

    def pair_after(self, pair: Pair, fresh: KeySet) -> Pair:
        """Give the pair in force when the meter took this stage's keys."""
        return Pair(
            fresh if KeyRole.GUEK in self.roles else pair.guek,
            fresh if KeyRole.GAK in self.roles else pair.gak,
            fresh if any(role in self.roles for role in SecretRole) else pair.secret,
        )


def plan(model: MeterModel, roles: tuple[MeterRole, ...]) -> tuple[Stage, ...]:
    """Order the key transfers that a renewal of these keys takes."""
    with_master = KeyRole.MASTER in roles
    first = [KeyRole(name) for name in model.key_transfer.order if KeyRole(name) in roles]
    if with_master:
        first = [role for role in first if role is not KeyRole.GBEK]
    groups = [tuple(first)] if model.key_transfer.array else [(role,) for role in first]
    stages = [Stage(group) for group in groups if group]
    if with_master:
        stages += [Stage((KeyRole.MASTER,)), Stage((KeyRole.GBEK,), under_fresh=True)]
    stages += [Stage((role,)) for role in SecretRole if role in roles]
    return tuple(stages)


def with_probe(model: MeterModel, roles: tuple[MeterRole, ...]) -> tuple[MeterRole, ...]:
    """Add the GBEK that proves a new master key; RefusedError where the model cannot change or prove these keys."""
    refuse_unproved(model)
    strange = [role for role in SecretRole if role in roles and role not in secret_roles(model)]
    if strange:
        mechanism = model.authentication.mechanism
        raise RefusedError(f"mechanism {mechanism} of model {model.name} has no {strange[0]} secret")
    if KeyRole.MASTER not in roles:
        return roles
    if not model.key_transfer.master_changeable:
        raise RefusedError(
            f"model {model.name} cannot change its master key over DLMS", hint="leave the master key out of the renewal"
        )
    return tuple(dict.fromkeys((*roles, KeyRole.GBEK)))
