"""The attestations room: what an auditor needs, and all that an auditor needs.

Canonical JSON, DSSE, in-toto statements, the Merkle tree, checkpoints, proofs, warrants, trust roots, the evidence
archive and its offline verifier; and the signer. This room imports no other room of Licet.
"""
