"""Serving of models: replicas in the sandbox, and the router before them. The router's process is ``local-serving``.

Rules kept here:

- The router obeys exactly the parameters that were decided: it verifies every warrant itself and marks it spent before
  it acts, and it takes nothing from a caller that a warrant does not bind.
- What decides (traffic, advance, alarms, drift, scaling) is pure and stands in modules of its own; what acts asks them.
- Nothing here imports the engine; the api and the signer are reached through what the wiring hands in.
"""
