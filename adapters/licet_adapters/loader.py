"""Discovery of adapters by entry point, from a list of names that the operator allows.

Rules kept here:

- Only names on the list are loaded; importing an adapter runs its code, so nothing is imported to look at it.
- A name that is missing, or that two distributions claim, is an error: which code runs is never a matter of order.
- Only the worker calls this.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from licet_adapters.ports import AdapterContext

GROUP = "licet.adapters"


def load_adapters(allow: Sequence[str], context: AdapterContext) -> Mapping[str, Any]:
    """Construct the allowed adapters, each with its own folder below ``context.data_dir``.

    Args:
        allow: Entry-point names, which are also the instance names that warrants bear.
        context: Given to each, ``data_dir`` narrowed to ``data_dir/<name>``.

    Returns:
        Name to adapter.

    Raises:
        AdapterError: A name is unknown, ambiguous, or its adapter cannot be loaded.
    """
    found = entry_points(group=GROUP)
    return {name: _construct(name, found.select(name=name), context) for name in allow}


def _construct(name: str, candidates: Sequence[EntryPoint], context: AdapterContext) -> Any:
    # One distribution may be seen twice through two paths; two values are two claimants.
    values = {entry_point.value for entry_point in candidates}
    if not values:
        raise AdapterError(f"no installed package offers the adapter {name!r}", code="adapter.unknown")
    if len(values) > 1:
        raise AdapterError(f"several packages claim the adapter {name!r}: {sorted(values)}", code="adapter.ambiguous")
    try:
        make = next(iter(candidates)).load()
    except (ImportError, AttributeError) as error:
        raise AdapterError(f"the adapter {name!r} cannot be loaded: {error}", code="adapter.broken") from error
    return make(replace(context, data_dir=context.data_dir / name))
