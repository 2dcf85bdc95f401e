"""Parts of the clips by a field of the shards: each clip is in one part, whatever the values are."""

from __future__ import annotations

import pytest

from salsa_dist.report.fields import by_value


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (["b", None, "a"], {"a": {"2"}, "b": {"0"}, "not known": {"1"}}),
        ([True, False], {"False": {"1"}, "True": {"0"}}),
        ([10, 9.5, 10], {"9.5": {"1"}, "10": {"0", "2"}}),
        # More different numbers than rows of a table: quarters of the clips.
        (
            list(range(13)),
            {
                "0 to 3": {"0", "1", "2", "3"},
                "4 to 6": {"4", "5", "6"},
                "7 to 9": {"7", "8", "9"},
                "10 to 12": {"10", "11", "12"},
            },
        ),
        # Most clips have one value, which stays in one part.
        (
            [7] * 12 + list(range(8, 20)),
            {
                "7": {str(i) for i in range(12)},
                "8 to 13": {str(i) for i in range(12, 18)},
                "14 to 19": {str(i) for i in range(18, 24)},
            },
        ),
    ],
)
def test_each_clip_is_in_the_part_of_its_value(
    values: list[object], parts: dict[str, set[str]]
) -> None:
    facts = {str(i): {} if v is None else {"age": v} for i, v in enumerate(values)}
    assert by_value("age", facts) == list(parts.items())
