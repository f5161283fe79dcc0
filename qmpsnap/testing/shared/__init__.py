"""Machines that the tests of a session share, and how they are reset between tests."""
