"""The log as C2SP tlog-tiles: checkpoint, tiles of hashes, and bundles of entries.

Rules kept here:

- Whoever may read a tenant's log reads its tiles, by the same question, logged alike; entries are headers, never records.
- A path has one spelling; what the log has not, or not yet, is not there.
- What never changes may be kept by who asked, and by nobody between: it is one tenant's.

Source: C2SP tlog-tiles (v0).
"""

from __future__ import annotations

from typing import Any, Final

from litestar import Response, get

from licet_attestations.errors import FormatError
from licet_attestations.merkle import HASH_BYTES
from licet_attestations.tiles import WIDTH, Tile, write_entries
from licet_engine.api.context import AnyRequest, Context
from licet_engine.api.problems import denied
from licet_engine.api.services import Services
from licet_engine.domain.errors import InvalidInput
from licet_engine.log import store
from licet_engine.store.db import read_transaction

_FOR_EVER: Final = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
_FOR_NOW: Final = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
MAX_INDEX: Final = 2**45
"""Of a tile: the entries it would hold have indices that no log reaches."""


def routes(context: Context) -> list[Any]:
    """The log in tiles."""
    services = context.services

    @get(
        "/v1/tlog/{tenant:str}/checkpoint",
        tags=["log"],
        summary="The newest checkpoint, with the cosignatures it has (C2SP tlog-tiles).",
    )
    async def checkpoint(request: AnyRequest, tenant: str) -> Response[Any]:
        answer = await context.permit(context.identify(request), "log.read", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        note = await context.in_thread(_checkpoint, services, tenant)
        return Response(note.encode(), media_type="text/plain", headers=_FOR_NOW)

    @get(
        "/v1/tlog/{tenant:str}/tile/{path:path}",
        tags=["log"],
        summary="A tile of hashes, or of entries (their headers), at LEVEL/INDEX[.p/WIDTH] (C2SP tlog-tiles).",
    )
    async def tile(request: AnyRequest, tenant: str, path: str) -> Response[Any]:
        identify = context.identify(request)
        identify()
        wanted = _tile_of(str(path))
        answer = await context.permit(identify, "log.read", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        data = await context.in_thread(_read, services, tenant, wanted)
        return Response(data, media_type="application/octet-stream", headers=_FOR_EVER)

    return [checkpoint, tile]


def _tile_of(path: str) -> Tile:
    try:
        wanted = Tile.from_path(f"tile/{path.lstrip('/')}")
    except FormatError as error:
        raise InvalidInput(str(error), code="no-such-tile") from error
    if wanted.index >= MAX_INDEX:
        raise InvalidInput("no log has a tile of so great an index", code="no-such-tile")
    return wanted


def _checkpoint(services: Services, tenant: str) -> str:
    """Where a quorum is required, the newest that it cosigned; else the newest."""
    found = services.witnesses.cosigned(tenant) if services.witnesses.is_required else None
    if found is not None:
        return found[1]
    return services.witnesses.note(tenant, *services.notary.checkpoint(tenant))


def _read(services: Services, tenant: str, wanted: Tile) -> bytes:
    with read_transaction(services.engine, tenant) as connection:
        if wanted.is_entries:
            entries = store.read_entries(connection, tenant, wanted.first, wanted.width)
            data = write_entries(entry.header.encode() for entry in entries)
            whole = len(entries) == wanted.width
        else:
            data = store.read_tile(connection, tenant, wanted.level, wanted.index)[: wanted.width * HASH_BYTES]
            whole = len(data) == wanted.width * HASH_BYTES
    if not whole:
        raise InvalidInput(
            f"the log of {tenant} has no such tile: ask for those of its checkpoint's size, of up to {WIDTH}",
            code="no-such-tile",
        )
    return data
