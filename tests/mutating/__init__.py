"""Seeded damage to small data sets, and what a user would do with them afterwards.

`python -m tests.mutating --task T --count 1000 --seed S` runs more of it than the test suite does.
"""
