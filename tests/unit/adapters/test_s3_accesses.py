"""S3 server access logs: what the store's documentation shows is read, and what has not the form is counted."""

import pytest

from licet_adapters.s3_accesses import MAX_LINE_CHARS, StoreAccess, read_accesses

OWNER = "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be"
REST = (
    '3E57427F3EXAMPLE REST.{op} {key} "{line}" {status} - 113 - 7 - "-" "S3Console/0.4" - '
    "s9lzHYrFp76ZVxRcpX9+5cjAnEH2ROuNkd2BHfIa6UkFVdtjf5mKR3/eTPFvsiP/XV/VLi31234= SigV4 "
    "ECDHE-RSA-AES128-GCM-SHA256 AuthHeader amzn-s3-demo-bucket1.s3.us-west-1.amazonaws.com TLSV1.2 - Yes"
)


def line(
    op: str = "GET.OBJECT",
    key: str = "licet/northbank/ab12",
    status: str = "200",
    at: str = "06/Feb/2019:00:00:38 +0000",
) -> str:
    request = REST.format(op=op, key=key, line=f"GET /{key} HTTP/1.1", status=status)
    return f"{OWNER} amzn-s3-demo-bucket1 [{at}] 192.0.2.3 {OWNER} {request}\n"


def test_a_line_says_who_did_what_to_which_object_and_when() -> None:
    assert list(read_accesses([line()])) == [
        StoreAccess("amzn-s3-demo-bucket1", 1549411238000, OWNER, "REST.GET.OBJECT", "licet/northbank/ab12", 200)
    ]


def test_a_request_about_no_object_has_no_key_and_a_time_its_zone() -> None:
    (found,) = read_accesses([line("GET.VERSIONING", "-", at="06/Feb/2019:02:00:38 +0200")])
    assert found is not None
    assert (found.key, found.at_ms, found.operation) == ("", 1549411238000, "REST.GET.VERSIONING")


def test_a_key_is_decoded_and_a_request_line_may_hold_quotes() -> None:
    (found,) = read_accesses([line(key="licet/northbank/a%2Bb").replace("GET /", 'GET \\"/')])
    assert found is not None
    assert found.key == "licet/northbank/a+b"


@pytest.mark.parametrize(
    "given",
    [
        "nonsense",
        line(at="06/Foo/2019:00:00:38 +0000"),
        line(at="31/Feb/2019:00:00:38 +0000"),
        line(status="2000"),
        line()[:150],
        "x" * (MAX_LINE_CHARS + 1),
    ],
)
def test_what_has_not_the_form_is_told_as_such(given: str) -> None:
    assert next(iter(read_accesses([given, "\n", line()]))) is None
    assert len(list(read_accesses([given, "\n", line()]))) == 2
