"""How a number is written, the same in titles, reports and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

NONE = "–"
"""What stands where the record has no number."""


def finite(value: Any) -> float | None:
    """The value as a float, or ``None`` for anything that is no finite number.

    >>> finite(2), finite(float("nan")), finite(True), finite("2")
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: Any, digits: int = 1) -> str:
    """A score or a utility, recorded as a fraction.

    >>> percent(0.93125), percent(None)
    ('93.1%', '–')
    """
    number = finite(value)
    return NONE if number is None else f"{100 * number:.{digits}f}%"


def points(value: float, metric: Any = "accuracy") -> str:
    """A difference of two scores, with its sign, in the unit of their metric: see :func:`unit`.

    >>> points(-0.0081), points(0.00001), points(-0.0081, "likelihood")
    ('−0.8 points', '±0.0 points', "−0.8% of a byte's likelihood")
    """
    size = f"{abs(100 * value):.1f}"
    sign = "±" if size == "0.0" else "−" if value < 0 else "+"
    return f"{sign}{size}{unit(metric)}"


def unit(metric: Any) -> str:
    """What a hundredth of a score is called: a point, but for a byte's likelihood, of which one means as much as five
    points of an accuracy.
    """
    return "% of a byte's likelihood" if metric == "likelihood" else " points"


def more_or_less(value: float) -> str:
    """A change in percent of what changes, with its sign.

    >>> more_or_less(0.0123), more_or_less(-0.2)
    ('+1.2%', '−20.0%')
    """
    return f"{value:+.1%}".replace("-", "−")


def interval(bounds: Any) -> str:
    """Both ends of an interval of scores, or nothing; no score lies outside 0 to 100%.

    >>> interval([0.361, 0.404]), interval([0.8, 1.14]), interval([None, 0.4])
    ('36.1–40.4%', '80.0–100.0%', '')
    """
    ends = [finite(end) for end in bounds] if isinstance(bounds, list | tuple) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return ""
    low, high = (100 * min(max(end, 0.0), 1.0) for end in (ends[0], ends[1]))
    return f"{low:.1f}–{high:.1f}%"


def ratio(value: Any) -> str:
    """A quotient of scores, such as uplift.

    >>> ratio(0.2449), ratio(-0.031), ratio(-0.001), ratio(None)
    ('0.24', '−0.03', '0.00', '–')
    """
    number = finite(value)
    if number is None:
        return NONE
    text = f"{abs(number):.2f}"
    return f"−{text}" if number < 0 and float(text) else text


def between(bounds: Any, how: Callable[[Any], str] = ratio) -> str:
    """An interval of anything else, its ends written by ``how``; an end that is None cannot be told.

    >>> between([0.12, 0.31]), between((2.5, None), times), between([None, 1.0]), between(None)
    ('0.12 to 0.31', '2.5× or more', '1.00 or less', '')
    """
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return ""
    low, high = (finite(end) for end in bounds)
    if low is None or high is None:
        return (
            f"{how(low)} or more" if low is not None else f"{how(high)} or less" if high is not None else ""
        )
    return f"{how(low)} to {how(high)}"


def short(number: float) -> str:
    """A number in its shortest form.

    >>> short(3e-4), short(0.1), short(1.0), short(0.0), short(-2.5e-5)
    ('3e-4', '0.1', '1', '0', '-2.5e-5')
    """
    size = abs(number)
    text = (
        f"{number:g}" if 1e-3 < size < 1e4 or not size else f"{number:.3g}" if size >= 1e4 else f"{number:e}"
    )
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def rate(value: Any) -> str:
    """A learning rate, as it is typed.

    >>> rate(0.0001), rate(0.00025), rate(0.1), rate(2), rate("cosine")
    ('1e-4', '2.5e-4', '0.1', '2', 'cosine')
    """
    number = finite(value)
    return plain(value) if number is None else short(number)


def significant(value: Any) -> str:
    """A number to three significant digits.

    >>> significant(5.0512), significant(31222.0), significant(0.2)
    ('5.05', '31,222', '0.200')
    """
    number = finite(value)
    if number is None:
        return NONE
    if number == 0 or 1e-3 <= abs(number) < 1e3:
        decimals = 2 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number))))
        return f"{number:.{decimals}f}"
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e6 else f"{number:.2e}"


def times(value: Any) -> str:
    """A ratio; a record may hold it as a bound in words.

    >>> times(3.25), times(0.031), times("> 6.7"), times(None)
    ('3.2×', '0.031×', '> 6.7×', '–')
    """
    if isinstance(value, str):
        return f"{value.strip().rstrip('×x')}×"
    number = finite(value)
    return NONE if number is None else f"{number:.1f}×" if number >= 0.95 else f"{number:.2g}×"


def duration(value: Any) -> str:
    """Seconds, in the units a reader thinks in.

    >>> duration(4.21), duration(312), duration(7980)
    ('4.2 s', '5 min 12 s', '2 h 13 min')
    """
    seconds = finite(value)
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain(value: Any) -> str:
    """Any setting of the record, on one line.

    >>> plain(1.0), plain(None), plain([0, 1]), plain({"a": 1}), plain(True)
    ('1', '–', '0, 1', '{"a": 1}', 'yes')
    """
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short(value)
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or NONE
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)


def setting(name: str, value: Any) -> str:
    """One setting of a configuration; learning rates have their own notation."""
    return rate(value) if name == "lr" or name.endswith("_lr") else plain(value)
