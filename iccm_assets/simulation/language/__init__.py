"""The requirements language, its interpreter, and what is drawn from it: programs and test suites."""
