"""The policy workbench: what a security team does with a folder of policies, without a server.

Rules kept here:

- Everything works on files alone: no database, no network, no clock but the one a test pins.
- A project is foreign input, also where its author runs the command: every file is bounded in size, depth and number before
  it is parsed, and nothing outside of the project's folder is read.
- What is decided here is decided by ``licet_engine.decide`` on a bundle that ``licet_policies`` composed: a test means what it
  will mean in force.
- What could not be done is an error and never a pass.
"""
