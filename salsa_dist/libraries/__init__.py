"""Undocumented behaviour of other packages that our code relies on, by package.

Each public function relies on one assumption. Its docstring ends with three lines:

    Seen: the tested versions.
    Else: what happens if the assumption is wrong.
    Test: the test in tests/libraries/ that fails then.

docs/libraries.md has all of them in a table.
"""
