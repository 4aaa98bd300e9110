"""Cedar's extension types: their literals read, and their functions encoded.

Rules kept: ``decimal`` is ten-thousandths, ``datetime`` milliseconds since 1970 and ``duration`` milliseconds, each in 64
bits; whatever would leave these is an error, as in Cedar. A literal that Cedar does not read is an error, too.

Source: https://docs.cedarpolicy.com/policies/syntax-datatypes.html, and RFCs 80 (datetime) and 12 (decimal) of Cedar.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from cvc5 import Kind

from licet_engine.workbench.symbolic.logic import Logic, Term
from licet_engine.workbench.symbolic.types import BOOL, LONG, ExtensionType, Type

__all__ = ["CONSTRUCTORS", "FUNCTIONS", "Function", "address_text", "read_literal"]

_I64: Final = range(-(1 << 63), 1 << 63)
DAY_MS: Final = 86_400_000
_DECIMAL: Final = re.compile(r"(-?)([0-9]+)\.([0-9]{1,4})")
_DATE: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{3}))?(?:Z|([+-])([0-9]{2})([0-9]{2})))?"
)
_DURATION: Final = re.compile(r"(-?)(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?")
_UNITS_MS: Final = (DAY_MS, 3_600_000, 60_000, 1_000, 1)
_MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PREFIX: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_OCTETS: Final = re.compile(r"(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){3}")

CONSTRUCTORS: Final[Mapping[str, ExtensionType]] = {
    "decimal": ExtensionType("decimal"),
    "ip": ExtensionType("ipaddr"),
    "datetime": ExtensionType("datetime"),
    "duration": ExtensionType("duration"),
}


def read_literal(logic: Logic, constructor: str, text: str) -> Term | None:
    """What ``constructor("text")`` is as a term; None where Cedar says that it is an error."""
    if constructor == "ip":
        return _read_address(logic, text)
    value = {"decimal": _read_decimal, "datetime": _read_datetime, "duration": _read_duration}[constructor](text)
    return None if value is None or value not in _I64 else logic.long(value)


def _read_decimal(text: str) -> int | None:
    found = _DECIMAL.fullmatch(text)
    if not found:
        return None
    sign, whole, part = found.groups()
    value = int(whole + part.ljust(4, "0"))
    return -value if sign else value


def _read_datetime(text: str) -> int | None:
    found = _DATE.fullmatch(text)
    if not found:
        return None
    numbers = [int(part) if part and part not in "+-" else 0 for part in found.groups()]
    year, month, day, hour, minute, second, milli, _, offset_h, offset_m = numbers
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= month <= 12 or not 1 <= day <= _MONTH_DAYS[month - 1] + (leap and month == 2):  # noqa: PLR2004  # A calendar.
        return None
    if hour > 23 or minute > 59 or second > 59 or offset_h > 23 or offset_m > 59:  # noqa: PLR2004  # A clock.
        return None
    # Days since the first of March of year 0, in which a leap day comes last; from there to 1970.
    shifted, months = (year - 1, month + 9) if month <= 2 else (year, month - 3)  # noqa: PLR2004  # February.
    days = 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400 + (153 * months + 2) // 5 + day - 1 - 719_468
    offset_ms = (offset_h * 60 + offset_m) * 60_000 * (-1 if found.group(8) == "-" else 1)
    return days * DAY_MS + ((hour * 60 + minute) * 60 + second) * 1_000 + milli - offset_ms


def _read_duration(text: str) -> int | None:
    found = _DURATION.fullmatch(text)
    if not found or not any(found.groups()[1:]):
        return None
    sign, *parts = found.groups()
    value = sum(int(part) * unit for part, unit in zip(parts, _UNITS_MS, strict=True) if part)
    return -value if sign else value


def _read_address(logic: Logic, text: str) -> Term | None:  # noqa: PLR0911  # Each that Cedar does not read ends here.
    address, slash, prefix = text.partition("/")
    if slash and not _PREFIX.fullmatch(prefix):
        return None
    if ":" in address:
        # An IPv4 address within one of IPv6, and a zone, Python reads and Cedar does not.
        if "." in address or "%" in address:
            return None
        try:
            number, width = int(ipaddress.IPv6Address(address)), 128
        except ValueError:
            return None
    elif _OCTETS.fullmatch(address) and all(int(octet) < 256 for octet in address.split(".")):  # noqa: PLR2004  # An octet.
        number, width = int(ipaddress.IPv4Address(address)), 32
    else:
        return None
    length = int(prefix) if slash else width
    if length > width:
        return None
    host, net, bits = (0, 1, 5) if width == 32 else (2, 3, 7)  # noqa: PLR2004  # IPv4.
    sort = logic.sort(ExtensionType("ipaddr"))
    if length == width:
        return logic.construct(sort, host, logic.bits(width, number))
    return logic.construct(sort, net, logic.bits(width, number), logic.bits(bits, length))


def address_text(constructor: str, arguments: tuple[int, ...]) -> str:
    """An address as Cedar reads it, from the constructor and the numbers of which its term is made."""
    version = ipaddress.IPv4Address if constructor.startswith("v4") else ipaddress.IPv6Address
    return "/".join([str(version(arguments[0])), *map(str, arguments[1:])])


Encoded = tuple[Term, Term]
"""Whether the function succeeds, and what it gives where it does."""


class Function:
    """One function of an extension.

    Attributes:
        arguments: Their types.
        result: Type of what it gives.
        encode: From the logic and the arguments' terms to whether it succeeds and what it gives.
    """

    def __init__(self, arguments: tuple[Type, ...], result: Type, encode: Callable[..., Encoded]) -> None:
        self.arguments = arguments
        self.result = result
        self.encode = encode


def _total(encode: Callable[..., Term]) -> Callable[..., Encoded]:
    return lambda logic, *terms: (logic.true, encode(logic, *terms))


def _checked(overflows: Any, operation: Any) -> Callable[..., Encoded]:
    return lambda logic, a, b: (logic.not_(logic.make(overflows, a, b)), logic.make(operation, a, b))


def _divided(unit_ms: int) -> Callable[..., Encoded]:
    return _total(lambda logic, a: logic.make(Kind.BITVECTOR_SDIV, a, logic.long(unit_ms)))


def _to_date(logic: Logic, time: Term) -> Encoded:
    # Down to the start of the day, before 1970 too; only there can it leave the 64 bits.
    into = _time_of_day(logic, time)
    return logic.not_(logic.make(Kind.BITVECTOR_SSUBO, time, into)), logic.make(Kind.BITVECTOR_SUB, time, into)


def _time_of_day(logic: Logic, time: Term) -> Term:
    rest = logic.make(Kind.BITVECTOR_SREM, time, logic.long(DAY_MS))
    if not rest.isBitVectorValue():
        logic.lemmas.append(logic.make(Kind.BITVECTOR_SLT, rest, logic.long(DAY_MS)))
        logic.lemmas.append(logic.make(Kind.BITVECTOR_SLT, logic.long(-DAY_MS), rest))
    before = logic.make(Kind.BITVECTOR_SLT, rest, logic.long(0))
    return logic.ite(before, logic.make(Kind.BITVECTOR_ADD, rest, logic.long(DAY_MS)), rest)


def _is_v4(logic: Logic, address: Term) -> Term:
    return logic.or_(logic.was_made_by(address, 0), logic.was_made_by(address, 1))


def _bounds(logic: Logic, address: Term, first: int, width: int, bits: int) -> tuple[Term, Term]:
    """The lowest and the highest address of a range, which the constructors at ``first`` and after it made."""
    host = logic.was_made_by(address, first)
    number = logic.ite(host, logic.select(address, first, 0), logic.select(address, first + 1, 0))
    extend = logic.tm.mkOp(Kind.BITVECTOR_ZERO_EXTEND, width - bits)
    prefix = logic.make(extend, logic.select(address, first + 1, 1))
    free = logic.ite(host, logic.bits(width, 0), logic.make(Kind.BITVECTOR_SUB, logic.bits(width, width), prefix))
    low = logic.make(Kind.BITVECTOR_SHL, logic.make(Kind.BITVECTOR_LSHR, number, free), free)
    size = logic.make(Kind.BITVECTOR_SHL, logic.bits(width, 1), free)
    high = logic.make(Kind.BITVECTOR_SUB, logic.make(Kind.BITVECTOR_ADD, low, size), logic.bits(width, 1))
    return low, high


def _in_range(logic: Logic, one: Term, other: Term) -> Term:
    both_v4 = logic.and_(_is_v4(logic, one), _is_v4(logic, other))
    both_v6 = logic.and_(logic.not_(_is_v4(logic, one)), logic.not_(_is_v4(logic, other)))
    within = []
    for both, first, width, bits in ((both_v4, 0, 32, 5), (both_v6, 2, 128, 7)):
        if logic.is_false(both):
            continue
        (low, high), (lowest, highest) = (_bounds(logic, side, first, width, bits) for side in (one, other))
        inside = logic.make(Kind.BITVECTOR_ULE, high, highest), logic.make(Kind.BITVECTOR_ULE, lowest, low)
        within.append(logic.and_(both, *inside))
    return logic.or_(*within)


def _in_any(*ranges: str) -> Callable[..., Encoded]:
    return _total(
        lambda logic, address: logic.or_(*(_in_range(logic, address, _read_address(logic, text)) for text in ranges))
    )


_DEC, _IP, _TIME, _SPAN = (CONSTRUCTORS[name] for name in ("decimal", "ip", "datetime", "duration"))

FUNCTIONS: Final[Mapping[str, Function]] = {
    "lessThan": Function((_DEC, _DEC), BOOL, _total(lambda lo, a, b: lo.make(Kind.BITVECTOR_SLT, a, b))),
    "lessThanOrEqual": Function((_DEC, _DEC), BOOL, _total(lambda lo, a, b: lo.make(Kind.BITVECTOR_SLE, a, b))),
    "greaterThan": Function((_DEC, _DEC), BOOL, _total(lambda lo, a, b: lo.make(Kind.BITVECTOR_SLT, b, a))),
    "greaterThanOrEqual": Function((_DEC, _DEC), BOOL, _total(lambda lo, a, b: lo.make(Kind.BITVECTOR_SLE, b, a))),
    "isIpv4": Function((_IP,), BOOL, _total(_is_v4)),
    "isIpv6": Function((_IP,), BOOL, _total(lambda lo, a: lo.not_(_is_v4(lo, a)))),
    "isLoopback": Function((_IP,), BOOL, _in_any("127.0.0.0/8", "::1")),
    "isMulticast": Function((_IP,), BOOL, _in_any("224.0.0.0/4", "ff00::/8")),
    "isInRange": Function((_IP, _IP), BOOL, _total(_in_range)),
    "offset": Function((_TIME, _SPAN), _TIME, _checked(Kind.BITVECTOR_SADDO, Kind.BITVECTOR_ADD)),
    "durationSince": Function((_TIME, _TIME), _SPAN, _checked(Kind.BITVECTOR_SSUBO, Kind.BITVECTOR_SUB)),
    "toDate": Function((_TIME,), _TIME, _to_date),
    "toTime": Function((_TIME,), _SPAN, _total(_time_of_day)),
    "toMilliseconds": Function((_SPAN,), LONG, _divided(1)),
    "toSeconds": Function((_SPAN,), LONG, _divided(1_000)),
    "toMinutes": Function((_SPAN,), LONG, _divided(60_000)),
    "toHours": Function((_SPAN,), LONG, _divided(3_600_000)),
    "toDays": Function((_SPAN,), LONG, _divided(DAY_MS)),
}
