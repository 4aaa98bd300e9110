"""The code that runs inside the sandbox: stand-alone scripts, named by one digest.

Rules kept here:

- A script imports the standard library, its declared libraries (torch, numpy, ...) and its neighbours in this folder;
  nothing else of ours can be seen from inside.
- A script is told where its inputs are, where it may write and on which descriptor to report, and nothing more.
- It reports JSON lines: ``{"metric": ...}`` as it goes, ``{"error": {"code", "message"}}`` before it fails on purpose
  (then it exits with status 65). Any other end is a defect, and fails the job all the same.
"""
