"""The alerts: every call that raises one, with its title, severity and key as they stand in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import iccm_assets
from scripts.reference.markdown import code, codes, page, table

PACKAGE = Path(iccm_assets.__file__).parent
# Each takes, after the connection of the first, the key, severity, title and body of an alert.
OR = " or "
RAISING = {"raise_alert": 1, "Alert": 0}
INTRODUCTION = """
An alert is a row of [`iccm.alerts`](tables.md#alerts) and a log line, written in the transaction of the
event that caused it. Its key names the cause and is unique, so one cause raises one alert; `<…>` stands for
a value. [Alerts and metrics](../how-to/alerts-and-metrics.md) says how alerts are delivered.
"""


def render() -> str:
    """Return the page."""
    alerts = [row for path in sorted(PACKAGE.rglob("*.py")) for row in _alerts(path)]
    rows = [
        (_options(title), severity, code(key), code(path)) for title, severity, key, path in sorted(alerts)
    ]
    return page("Alerts", INTRODUCTION, table(("title", "severity", "key", "raised in"), rows))


def _alerts(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield title, severity, key and path of every alert that a file raises."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        assigned = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and (name := ast.unparse(call.func).rsplit(".", 1)[-1]) in RAISING:
                key, severity, title = (_text(item, assigned) for item in call.args[RAISING[name] :][:3])
                if "action." not in ast.unparse(call):  # passes an alert on that a decision holds
                    yield title, severity, key, str(path.relative_to(PACKAGE.parent))


def _options(text: str) -> str:
    return codes(text.split(OR), OR)


def _text(node: ast.expr, assigned: Mapping[str, ast.expr]) -> str:
    """Return the text of an expression, with the names of its values in angle brackets."""
    match node:
        case ast.Name() if node.id in assigned:
            return _text(assigned[node.id], assigned)
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(_text(part, assigned) for part in node.values)
        case ast.IfExp():
            return OR.join(dict.fromkeys((_text(node.body, assigned), _text(node.orelse, assigned))))
        case ast.FormattedValue():
            is_day = node.format_spec is not None and "%d" in ast.unparse(node.format_spec)
            return "<day>" if is_day else f"<{_name(node.value)}>"
    return f"<{_name(node)}>"


def _name(node: ast.expr) -> str:
    """Return the last word of an expression that names a value."""
    match node:
        case ast.Attribute():
            return node.attr.lstrip("_")
        case ast.Call():
            return _name(node.func)
    return ast.unparse(node)
