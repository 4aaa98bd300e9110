"""``python -m licet_attestations.signer``: the signer's process."""

from licet_attestations.signer.server import main

if __name__ == "__main__":
    main(prog_name="python -m licet_attestations.signer")
