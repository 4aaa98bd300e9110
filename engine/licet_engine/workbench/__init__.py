"""For security teams: policies written, tested, proved, compared, replayed. Nothing here needs a service or a database."""
