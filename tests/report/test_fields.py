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
            list(range(16, 0, -1)),
            {
                "1 to 4": {"12", "13", "14", "15"},
                "5 to 8": {"8", "9", "10", "11"},
                "9 to 12": {"4", "5", "6", "7"},
                "13 to 16": {"0", "1", "2", "3"},
            },
        ),
        # Most clips have one value, which stays in one part.
        (
            [7] * 12 + list(range(8, 20)),
            {
                "7 to 7": {str(i) for i in range(12)},
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
