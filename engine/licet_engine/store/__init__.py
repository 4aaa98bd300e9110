"""The store: tables, tenant-scoped sessions and migrations.

Rules kept here: every row names its tenant, a query without a tenant fails, and what is specific to one database stands in
``db.py``, ``postgres.py`` and ``walls.py`` alone.
"""
