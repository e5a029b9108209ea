"""Test suites: documents and values, running one against an implementation, verdicts."""
