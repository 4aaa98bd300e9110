"""The signer: one small process that holds every key and the last checkpoint of every log.

``rules`` decides what is signed (pure), ``keystore`` keeps the keys, ``state`` the last checkpoints, ``server`` is the
process, ``client`` talks to it.
"""
