"""Adapters: ports as Protocols, and what implements them on one machine.

An adapter does what was decided: it verifies the warrant itself, marks it spent, acts once, and says what it did.
It imports the attestations room and never the engine. Third parties add one by the entry point ``licet.adapters``.
"""
