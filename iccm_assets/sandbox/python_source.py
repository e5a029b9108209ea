"""Parse source code that nobody trusts, outside of the sandbox, in time that is in proportion to its size."""

from __future__ import annotations

import ast
import io
import sys
import tokenize

BYTE_ORDER_MARK = "\ufeff"
# Before Python 3.12 each expression in an f-string is parsed after a look at everything before it.
QUADRATIC_FORMATS = sys.version_info < (3, 12)
MAX_UNCHECKED_BRACES = 1000
MAX_FORMAT_COST = 50_000_000  # braces x characters of one string: about 0.05 s


def parse_python(source: str) -> ast.Module:
    """Parse a module as Python reads it from a file.

    Raises what ``ast.parse`` raises for hostile text (SyntaxError, ValueError, RecursionError, MemoryError).
    """
    source = source.removeprefix(BYTE_ORDER_MARK)
    if QUADRATIC_FORMATS and source.count("{") > MAX_UNCHECKED_BRACES:
        _check_format_strings(source)
    return ast.parse(source)


def _check_format_strings(source: str) -> None:
    """Raise SyntaxError for an f-string that would take too long to parse."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.STRING:
                prefix = token.string[:3].partition(token.string[-1])[0].lower()
                if "f" in prefix and token.string.count("{") * len(token.string) > MAX_FORMAT_COST:
                    raise SyntaxError("an f-string is too long")
    except tokenize.TokenError as error:
        raise SyntaxError(str(error)) from None
