"""What our code assumes of other packages beyond what they promise: one module per package.

Each public function is one assumption. Its docstring ends with three lines:

    Seen: the versions in which it was true.
    Else: what happens where it is not.
    Test: the test that fails with it, in tests/libraries/.

docs/libraries.md is the same as a table.
"""
