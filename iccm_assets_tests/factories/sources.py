"""Messages as people write them, and the source in each; None where there is none."""

# ruff: noqa: E501 (a sample per line is easier to compare than a wrapped text)
from __future__ import annotations

ADD = "def add(a, b):\n    return a + b"
FENCED_ADD = f"```python\n{ADD}\n```"
TESTS = "from add import add\n\n\ndef test_add():\n    assert add(1, 2) == 3"

# Kind: the user's message and the source that requirements of `add` are about.
SOURCES: dict[str, tuple[str, str | None]] = {
    "fence": (f"Write requirements for\n{FENCED_ADD}\nThanks", ADD),
    "fence without language": (f"```\n{ADD}\n```", ADD),
    "fence with a file name": (f"```python:add.py\n{ADD}\n```", ADD),
    "fence in braces": (f"```{{.python}}\n{ADD}\n```", ADD),
    "fence of tildes": (f"~~~py\n{ADD}\n~~~", ADD),
    "fence with windows lines": (f"```python\n{ADD}\n```".replace("\n", "\r\n"), ADD),
    "fence behind words": (f"Requirements for this: ```python\n{ADD}\n```", ADD),
    "fence that ends behind code": (f"```python\n{ADD}```", ADD),
    "fence that never ends": (f"Here:\n```python\n{ADD}", ADD),
    "fence of text with code": (f"```text\n{ADD}\n```", ADD),
    "output after it": (f"{FENCED_ADD}\nIt prints\n```\n3\n```", ADD),
    "output in words after it": (f"{FENCED_ADD}\nIt prints ```3```", ADD),
    "output of several lines after it": (f"{FENCED_ADD}\n```\nINFO started\nINFO done in 12 ms\n```", ADD),
    "printed list after it": (f"{FENCED_ADD}\n```\n[1, 2, 3]\n```", ADD),
    "printed words after it": (f"{FENCED_ADD}\nOutput:\n```\nthe sum is 3\n```", ADD),
    "printed value as python": (f"{FENCED_ADD}\n```python\n{{'sum': 3}}\n```", ADD),
    "traceback after it": (
        f'{FENCED_ADD}\n```text\nTraceback (most recent call last):\n  File "a.py", line 2, in add\n'
        "TypeError: unsupported operand\n```",
        ADD,
    ),
    "traceback as python after it": (
        f'{FENCED_ADD}\n```python\nTraceback (most recent call last):\n  File "a.py", line 2, in add\n'
        "    return a + b\nTypeError: unsupported operand\n```",
        ADD,
    ),
    "json after it": (f'{FENCED_ADD}\n```json\n{{"a": 1, "b": 2}}\n```', ADD),
    "json without language after it": (f'{FENCED_ADD}\n```\n{{"a": 1, "b": [2]}}\n```', ADD),
    "yaml after it": (f"{FENCED_ADD}\n```yaml\nadd:\n  debug: false\n```", ADD),
    "toml after it": (f"{FENCED_ADD}\n```toml\n[tool.add]\nx = 1\n```", ADD),
    "diff after it": (
        f"{FENCED_ADD}\n```diff\n--- a/add.py\n+++ b/add.py\n@@ -1 +1 @@\n-def add(a):\n+def add(a, b):\n```",
        ADD,
    ),
    "diff without language": (
        f"{FENCED_ADD}\n```\ndiff --git a/add.py b/add.py\n@@ -1 +1 @@\n-def add(a):\n+def add(a, b):\n```",
        ADD,
    ),
    "python session after it": (f"{FENCED_ADD}\n```pycon\n>>> add(1, 2)\n3\n```", ADD),
    "python session as python": (
        f"{FENCED_ADD}\n```python\n>>> def g(): return add(1, 2)\n>>> g()\n3\n```",
        ADD,
    ),
    "console after it": (f"{FENCED_ADD}\n```console\n$ python add.py\n3\n```", ADD),
    "shell commands after it": (f"{FENCED_ADD}\n```bash\npip install pytest\npython -m pytest -q\n```", ADD),
    "tests after it": (f"{FENCED_ADD}\nand its tests\n```python\n{TESTS}\n```", ADD),
    "tests before it": (f"```python\n{TESTS}\n```\nfor\n{FENCED_ADD}", ADD),
    "test class after it": (
        f"{FENCED_ADD}\n```python\nclass TestAdd(unittest.TestCase):\n    def setUp(self):\n        self.x = 1\n\n"
        "    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n```",
        ADD,
    ),
    "assertions after it": (
        f"{FENCED_ADD}\n```python\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n```",
        ADD,
    ),
    "usage after it": (f"{FENCED_ADD}\nI call it like this:\n```python\nprint(add(1, 2))\n```", ADD),
    "usage with variables after it": (f"{FENCED_ADD}\n```python\nx = 1\ny = 2\nprint(add(x, y))\n```", ADD),
    "another function after it": (
        f"{FENCED_ADD}\nNot this one:\n```python\ndef sub(a, b):\n    return a - b\n```",
        ADD,
    ),
    "corrected version after it": (
        f"```python\ndef add(a, b):\n    return a\n```\nSorry, I mean\n{FENCED_ADD}",
        ADD,
    ),
    "code in a tag": (f"<code>\n{ADD}\n</code>", ADD),
    "code in a tag in words": (f"Requirements for <code>{ADD}</code> please", ADD),
    "code in nested tags": (f'<pre><code class="language-python">{ADD}</code></pre>', ADD),
    "code in a tag without end": (f"Please: <code>\n{ADD}", ADD),
    "code in a tag with entities": (
        "<code>def less(a, b):\n    return a &lt; b</code>",
        "def less(a, b):\n    return a < b",
    ),
    "code in a document tag": (f'<document path="add.py">\n{ADD}\n</document>\nWrite its requirements.', ADD),
    "unfenced": (f"Write requirements for this:\n\n{ADD}\n\nThanks a lot!", ADD),
    "unfenced with words right after it": (f"Write requirements for this:\n{ADD}\nThanks a lot!", ADD),
    "unfenced with an import": (
        f"Requirements please\n\nimport math\n\n\n{ADD}\n",
        f"import math\n\n\n{ADD}",
    ),
    "message that is code": (
        f"import math\n\nLIMIT = 3\n\n\n{ADD}\n",
        f"import math\n\nLIMIT = 3\n\n\n{ADD}\n",
    ),
    "indented": (
        "Write requirements for this:\n\n" + "\n".join(f"    {line}" for line in ADD.split("\n")),
        ADD,
    ),
    "indented by tabs": (
        "For this:\n\n\tdef add(a, b):\n\t\treturn a + b\n\nplease",
        "def add(a, b):\n\treturn a + b",
    ),
    "indented in a list": (
        "1. For this:\n\n       def add(a, b):\n           return a + b\n\n2. thanks",
        ADD,
    ),
    "fence in a list": (
        "1. For this:\n\n     ```python\n     def add(a, b):\n         return a + b\n     ```\n2. thanks",
        ADD,
    ),
    "in a line": ("Requirements of `def add(a, b): return a + b` please", "def add(a, b): return a + b"),
    "typescript": (
        "```ts\nexport function add(a: number, b: number): number {\n  return a + b;\n}\n```",
        "export function add(a: number, b: number): number {\n  return a + b;\n}",
    ),
    "arrow function": ("```tsx\nconst add = (a, b) => a + b;\n```", "const add = (a, b) => a + b;"),
    "go": (
        "```go\npackage add\n\nfunc Add(a, b int) int {\n\treturn a + b\n}\n```",
        "package add\n\nfunc Add(a, b int) int {\n\treturn a + b\n}",
    ),
    "go without language": (
        "```\nfunc Add(a, b int) int {\n\treturn a + b\n}\n```",
        "func Add(a, b int) int {\n\treturn a + b\n}",
    ),
    "rust": (
        "```rust\npub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n```",
        "pub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}",
    ),
    "java": (
        "```java\npublic class Add {\n    int add(int a, int b) { return a + b; }\n}\n```",
        "public class Add {\n    int add(int a, int b) { return a + b; }\n}",
    ),
    "sql": (
        "```sql\nCREATE VIEW sums AS SELECT a + b FROM t;\n```",
        "CREATE VIEW sums AS SELECT a + b FROM t;",
    ),
    "shell function": ("```bash\nadd() {\n  echo $(($1 + $2))\n}\n```", "add() {\n  echo $(($1 + $2))\n}"),
    "unfenced typescript": (
        "Requirements for\n\nexport function add(a: number, b: number) {\n  return a + b;\n}\n\nplease.",
        "export function add(a: number, b: number) {\n  return a + b;\n}",
    ),
    "reminder before it": (
        f"<system-reminder>Notes: ```python\ndef notes(): pass\n```</system-reminder>\n{FENCED_ADD}",
        ADD,
    ),
    "reminder after it": (
        f"{FENCED_ADD}\n<system-reminder>\nNotes:\n```python\ndef notes():\n    pass\n```\n</system-reminder>",
        ADD,
    ),
    "reminder behind unfenced code": (
        f"For\n\n{ADD}\n<system-reminder>def notes(): pass</system-reminder>",
        ADD,
    ),
    "reminder without end": (f"{FENCED_ADD}\n<system-reminder>\n```python\ndef notes(): pass\n```", ADD),
    "hook output after it": (
        f"{FENCED_ADD}\n<user-prompt-submit-hook>\n```python\ndef hook(): pass\n```\n</user-prompt-submit-hook>",
        ADD,
    ),
    "hook output in words after it": (
        f"{FENCED_ADD}\n\nUserPromptSubmit hook success: notes\n```python\ndef hook(): pass\n```",
        ADD,
    ),
    "hook output before it": (
        f"SessionStart:startup hook success: ready\n```python\ndef hook(): pass\n```\n\nFor this:\n{FENCED_ADD}",
        ADD,
    ),
    "summary before it": (
        "This session is being continued from a previous conversation that ran out of context. Summary:\n"
        "```python\ndef piece(): pass\n```\nPlease continue the conversation from where we left it off.\n\n"
        f"{FENCED_ADD}",
        ADD,
    ),
    "summary after it": (
        f"{FENCED_ADD}\n\nHere is a summary of the conversation so far:\n```python\ndef piece(): pass\n```",
        ADD,
    ),
    "reminder on the line that closes the fence": (
        f"{FENCED_ADD}<system-reminder>\n```python\ndef notes(): pass\n```\n</system-reminder>",
        ADD,
    ),
    "reminder in capitals": (
        f"{FENCED_ADD}\n<SYSTEM-REMINDER>```python\ndef notes(): pass\n```</SYSTEM-REMINDER>",
        ADD,
    ),
    "environment of a client": (
        f"<environment_context>\n```python\ndef notes(): pass\n```\n</environment_context>\n{FENCED_ADD}",
        ADD,
    ),
    "summary of a compacted context": (
        f"{FENCED_ADD}\n\nYour context was compacted. Before:\n```python\ndef piece(): pass\n```",
        ADD,
    ),
    "summary of the conversation so far": (
        f"{FENCED_ADD}\n\nThe conversation so far has been summarized:\n```python\ndef piece(): pass\n```",
        ADD,
    ),
    "summary in a tag": (
        f"{FENCED_ADD}\n<summary>\nBefore:\n```python\ndef piece(): pass\n```\n</summary>",
        ADD,
    ),
    "unfenced with windows lines": (f"Please:\n\n{ADD}\n\nThanks".replace("\n", "\r\n"), ADD),
    "quoted": ("> ```python\n> def add(a, b):\n>     return a + b\n> ```\n\nthis one", ADD),
    "numbered lines": ("```\n1  def add(a, b):\n2      return a + b\n```", ADD),
    "documents in tags": (
        f"<documents><document><source>add.py</source><document_content>\n{ADD}\n</document_content></document>"
        "</documents>\nRequirements?",
        ADD,
    ),
    "marker in a string of the code": (
        "```python\ndef add(a, b):\n    return a + b  # <system-reminder>\n```",
        "def add(a, b):\n    return a + b  # <system-reminder>",
    ),
    "helper in a block of its own": (
        "```python\ndef plus(a, b):\n    return a + b\n```\nand\n```python\ndef add(a, b):\n    return plus(a, b)\n```",
        "def plus(a, b):\n    return a + b\n\ndef add(a, b):\n    return plus(a, b)\n",
    ),
    "imports in a block of their own": (
        "```python\nimport operator\n```\n```python\ndef add(a, b):\n    return operator.add(a, b)\n```",
        "import operator\n\ndef add(a, b):\n    return operator.add(a, b)\n",
    ),
    "only words": ("Please write requirements for addition.", None),
    "only words with a definition": ("The class of 2020 must define a function that adds.", None),
    "only output": ("It prints\n```\n3\n```", None),
    "only a traceback": (
        '```\nTraceback (most recent call last):\n  File "a.py", line 1\nTypeError: x\n```',
        None,
    ),
    "only json": ('```json\n{"a": 1}\n```', None),
    "only a diff": ("```diff\n-def add(a):\n+def add(a, b):\n```", None),
    "only a session": ("```pycon\n>>> add(1, 2)\n3\n```", None),
    "only tests": (f"```python\n{TESTS}\n```", None),
    "only commands": ("```bash\npytest -q\n```", None),
    "only a reminder": ("<system-reminder>```python\ndef notes(): pass\n```</system-reminder>", None),
    "only a summary in a tag": ("<summary>\n```python\ndef piece(): pass\n```\n</summary>", None),
    "only hook output": (
        "PostToolUse:Write hook additional context:\n```python\ndef hook(): pass\n```",
        None,
    ),
    "only a summary": (
        "This session is being continued from a previous conversation.\n```python\ndef piece(): pass\n```",
        None,
    ),
}
