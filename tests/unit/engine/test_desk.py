"""Where questions are answered: what comes in between two looks at the database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licet_engine.api.services import Services
from licet_engine.app import build_services
from licet_engine.init import initialise
from licet_engine.lifecycle.asking import Answer, parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Who
from licet_engine.settings import load_settings


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    settings = load_settings({}, data=tmp_path / "d")
    initialise(settings)
    services = build_services(settings)
    yield services
    services.sequencer.close()
    services.threads.shutdown()
    services.engine.dispose()


def test_a_request_whose_first_sending_comes_in_between_is_answered_as_that_was(services: Services) -> None:
    token = (services.settings.data / "operator.token").read_text().strip()
    body = {"region": "us", "administrator": "admin", "packs": []}
    asked = parse_asked(VERBS["tenant.create"], "northbank", body, key="create-1")
    first: list[Answer] = []

    def send_first(_: Who) -> None:
        first.append(services.desk.ask(identify, asked))

    def identify() -> Who:
        return services.tenants.identify(token)

    # After the key was looked for, and before the facts are read: in these the tenant is there already, which were a conflict.
    second = services.desk.ask(identify, asked, verify=send_first)
    assert first[0].conflict is None
    assert (second.conflict, second.decision_id) == (None, first[0].decision_id)
    other = parse_asked(VERBS["tenant.create"], "northbank", body, key="create-2")
    assert services.desk.ask(identify, other).conflict is not None
