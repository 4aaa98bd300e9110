"""The commands of the CLI, a module per family.

Rules kept here:

- Importing a command imports click and the standard library only; what a command needs is imported when it runs. So an
  auditor verifies evidence with the lightest installation.
- What is asked for goes to stdout, everything else to stderr. No traceback is ever shown unless ``LICET_DEBUG`` is set.
- Exit codes: 0 allowed or done, 1 denied, 2 error, 3 denied and only approvals are missing.
"""
