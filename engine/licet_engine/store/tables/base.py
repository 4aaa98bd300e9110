"""What all tables stand on: the tenant of every row, JSON as text, and references to what several families refer to."""

import json
from typing import Any, Final

from sqlalchemy import ForeignKeyConstraint, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class JsonText(TypeDecorator[Any]):
    """A JSON value kept as text, with sorted keys and no white space; ``None`` is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature.
        """Encode on the way in; NaN and infinity are refused, because they are not JSON."""
        if value is None:
            return None
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any | None:  # noqa: ARG002  # SQLAlchemy's signature.
        """Decode on the way out."""
        return None if value is None else json.loads(value)


def to_tenant() -> ForeignKeyConstraint:
    """The row's tenant is one that there is."""
    return ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"])


def to_version() -> ForeignKeyConstraint:
    """The model version that the row names is one of its tenant's."""
    return ForeignKeyConstraint(
        ["tenant_id", "model", "version"], ["model_version.tenant_id", "model_version.model", "model_version.version"]
    )


REMOVED_BY_ANY: Final = {"confirm_deleted_rows": False}
"""Of rows that go when their time is over: of several apis, another may have removed them already, which is as well."""


class TenantRow(SQLModel):
    """What every row has: the tenant it belongs to."""

    tenant_id: str = Field(primary_key=True)
