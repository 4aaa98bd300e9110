"""No warrant, no run: what every adapter must refuse, whatever it does."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.suite import Suite, expect, refused
from licet_adapters.conformance.world import FOREIGN_TENANT, World
from licet_attestations.warrant import read_warrant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WARRANT_LIFE_MS = 300_000


@dataclass(frozen=True, kw_only=True)
class GuardedAct:
    """One act of an adapter, to be tried under many warrants.

    Attributes:
        action: Decided action that leads to it.
        operation: The adapter operation.
        other_action: Another action, which does not lead to it.
        other_operation: An operation that ``other_action`` leads to.
        resources: What a warrant for it names.
        parameters: The operation's.
        act: Does it under the given warrant, the same thing each time.
        has_happened: Tells whether any of it did.
    """

    action: str
    operation: str
    other_action: str
    other_operation: str
    resources: Mapping[str, str]
    parameters: Mapping[str, Any]
    act: Callable[[bytes], Any]
    has_happened: Callable[[], bool]


class GuardConformance(Suite):
    """Every warrant that is not exactly for the act is refused with its own code, and nothing happens.

    Args:
        adapter: Instance name.
        make: Prepares one act of an adapter in a world.
    """

    def __init__(self, adapter: str, make: Callable[[World], GuardedAct]) -> None:
        self._adapter = adapter
        self._make = make

    def case_the_right_warrant_is_admitted(self, world: World) -> None:
        """The act happens."""
        act = self._make(world)
        act.act(self._warrant(world, act))
        expect(act.has_happened(), expected=True, what="the act under its warrant")

    def case_a_warrant_of_another_signer_is_refused_as_forged(self, world: World) -> None:
        """Same names, other keys."""
        with tempfile.TemporaryDirectory() as folder:
            other = World(Path(folder))
            other.now_ms = world.now_ms
            self._refused(world, "forged", lambda act: self._warrant(other, act))

    def case_an_altered_warrant_is_refused_as_forged(self, world: World) -> None:
        """One byte of the payload changed."""

        def altered(act: GuardedAct) -> bytes:
            envelope = self._warrant(world, act)
            at = envelope.index(b'"payload":"') + 40
            return envelope[:at] + (b"A" if envelope[at : at + 1] != b"A" else b"B") + envelope[at + 1 :]

        self._refused(world, "forged", altered)

    def case_what_is_not_a_warrant_is_refused_as_forged(self, world: World) -> None:
        """Nothing, and something else."""
        self._refused(world, "forged", lambda _: b"")
        self._refused(world, "forged", lambda _: b'{"payload":"","payloadType":"x","signatures":[]}')

    def case_an_expired_warrant_is_refused(self, world: World) -> None:
        """At its last moment, not after it."""

        def expired(act: GuardedAct) -> bytes:
            envelope = self._warrant(world, act)
            world.now_ms += _WARRANT_LIFE_MS
            return envelope

        self._refused(world, "expired", expired)

    def case_a_spent_warrant_is_refused(self, world: World) -> None:
        """By the same instance, and by one that starts anew on the same folder."""
        act = self._make(world)
        envelope = self._warrant(world, act)
        act.act(envelope)
        with refused("warrant.spent"):
            act.act(envelope)
        with refused("warrant.spent"):
            self._make(world).act(envelope)

    def case_a_spent_warrant_stays_spent_when_the_clock_jumps_back(self, world: World) -> None:
        """Time cannot undo a mark."""
        act = self._make(world)
        envelope = self._warrant(world, act)
        act.act(envelope)
        world.now_ms -= 1_000
        with refused("warrant.spent"):
            act.act(envelope)

    def case_a_warrant_for_another_adapter_is_refused(self, world: World) -> None:
        """Same operation, other instance."""
        self._refused(world, "other-adapter", lambda act: self._warrant(world, act, adapter="another-one"))

    def case_a_warrant_for_another_operation_is_refused(self, world: World) -> None:
        """Same instance and things, other operation."""
        self._refused(
            world,
            "other-operation",
            lambda act: self._warrant(world, act, action=act.other_action, operation=act.other_operation),
        )

    def case_an_operation_that_the_action_does_not_lead_to_is_refused(self, world: World) -> None:
        """Even if the signer had signed it."""
        self._refused(
            world,
            "other-operation",
            lambda act: world.tampered(self._warrant(world, act), action=act.other_action),
        )

    def case_a_warrant_for_other_parameters_is_refused(self, world: World) -> None:
        """One member more."""
        self._refused(
            world,
            "other-parameter",
            lambda act: self._warrant(world, act, parameters={**act.parameters, "unasked": True}),
        )

    def case_a_warrant_for_other_resources_is_refused(self, world: World) -> None:
        """Another digest, one thing less, one thing more."""
        for change in ("other", "less", "more"):

            def other(act: GuardedAct, change: str = change) -> bytes:
                named = dict(act.resources)
                name = min(named)
                if change == "other":
                    named[name] = "e" * 64
                elif change == "less":
                    del named[name]
                else:
                    named["unasked"] = "e" * 64
                return self._warrant(world, act, resources=named)

            self._refused(world, "other-resource", other)

    def case_a_warrant_of_another_tenant_is_refused(self, world: World) -> None:
        """Its decision, logged and allowed, is another tenant's."""

        def foreign(act: GuardedAct) -> bytes:
            # The signer refuses to name one tenant's things for another, so this takes a broken signer, too.
            mine = self._warrant(world, act, tenant=FOREIGN_TENANT, resources={})
            return world.tampered(mine, resources=dict(act.resources))

        self._refused(world, "other-resource", foreign)

    def case_an_unlogged_warrant_is_refused(self, world: World) -> None:
        """The proof is of another entry, or the entry is another tenant's."""

        def of_another_entry(act: GuardedAct) -> bytes:
            first, second = self._warrant(world, act), self._warrant(world, act)
            return world.tampered(second, leaf=read_warrant(first).leaf)

        def of_another_log(act: GuardedAct) -> bytes:
            mine = self._warrant(world, act, tenant=FOREIGN_TENANT, resources={})
            return world.tampered(
                self._warrant(world, act), log_proof=read_warrant(mine).log_proof, leaf=read_warrant(mine).leaf
            )

        self._refused(world, "unlogged", of_another_entry)
        self._refused(world, "unlogged", of_another_log)

    def _refused(self, world: World, reason: str, warrant: Callable[[GuardedAct], bytes]) -> None:
        act = self._make(world)
        envelope = warrant(act)
        with refused(f"warrant.{reason}"):
            act.act(envelope)
        expect(act.has_happened(), expected=False, what="an act under a refused warrant")

    def _warrant(self, world: World, act: GuardedAct, **changes: Any) -> bytes:
        asked: dict[str, Any] = {
            "action": act.action,
            "adapter": self._adapter,
            "operation": act.operation,
            "resources": act.resources,
            "parameters": act.parameters,
        }
        return world.warrant(**(asked | changes))
