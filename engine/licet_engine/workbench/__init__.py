"""The workbench: what security teams test, prove and compare policies with. Nothing here needs a server or a database."""
