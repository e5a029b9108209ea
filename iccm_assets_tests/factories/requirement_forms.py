"""Texts as people and models write them: requirements in every usual form, and what only looks like some."""

# ruff: noqa: E501 (a sample per line is easier to compare than a wrapped text)
from __future__ import annotations

# Form: the answer. Each is requirements as a whole.
REQUIREMENT_FORMS: dict[str, str] = {
    "shall": "The function `add` shall take `a` and `b`. It shall return `a` plus `b`.",
    "shall not": "The function `add` shall not change `a` or `b`.",
    "shall in bold": "The function **shall** return the sum of `a` and `b`.",
    "ears": "WHEN `add` is called with two numbers THE SYSTEM SHALL return their sum.",
    "ears unwanted behavior": "If `b` is zero, then the divider shall raise ZeroDivisionError.",
    "headings": "# add\n\n## Behaviour\n\nThe function shall return the sum of `a` and `b`.",
    "must": "1. The function `add` MUST take `a` and `b`.\n2. It MUST return `a` plus `b`.",
    "must in lower case": "The function add must return the sum of a and b.",
    "must as list of short items": "- `add` must take two arguments\n- It must return their sum",
    "should": "The function add should return the sum of a and b.",
    "should in a list": "1. It should accept two numbers.\n2. It should return their sum.",
    "rfc 2119 should": "The function SHOULD return the sum of both arguments.",
    "will": "The function add will return the sum of a and b.",
    "will in a list": "1. add will take two numbers.\n2. add will return their sum.",
    "needs to": "The function needs to return the sum of a and b.",
    "need to": "Callers need to pass two numbers.\nThe functions need to return their sum.",
    "has to": "The method has to return the sum of its two arguments.",
    "is required to": "The function is required to return the sum of a and b.",
    "is expected to": "The function is expected to return the sum of a and b.",
    "must with greeting and closing words": (
        "Sure! Here you go.\n\nThe function must return the sum of a and b.\n\nLet me know if you need more."
    ),
    "list under a markdown heading": "## Requirements\n\n- Takes two numbers `a` and `b`\n- Returns their sum",
    "list under a line": "Requirements:\n1. Takes two numbers a and b.\n2. Returns their sum.",
    "list under a sentence": "Here are the requirements for `add`:\n\n1. Accepts two numbers.\n2. Returns their sum.",
    "list under a bold line": "**Functional requirements**\n\n* Accepts two numbers\n* Returns their sum",
    "list under an underlined heading": "Requirements\n============\n\n- accepts two numbers\n- returns their sum",
    "acceptance criteria": "Acceptance criteria:\n- The sum of two numbers is returned\n- No argument is changed",
    "user story": (
        "As a cashier, I want to add two amounts so that I can name the total.\n\n"
        "Acceptance criteria:\n- Two amounts give their sum\n- Amounts may be negative"
    ),
    "user story alone": "As an accountant I want the sum of two numbers, so that I do not have to calculate it.",
    "gherkin": (
        "Feature: Addition\n  Scenario: Two numbers\n    Given the numbers 1 and 2\n"
        "    When add is called\n    Then the result is 3"
    ),
    "gherkin without a feature": "Given two numbers a and b\nWhen add(a, b) is called\nThen it returns a + b",
    "ieee 29148": (
        "1. Introduction\n1.1 Purpose\nThis document specifies add.\n\n3. Requirements\n3.1 Functional requirements\n"
        "3.1.1 The product accepts two numbers as arguments.\n3.1.2 The product returns the sum of both numbers."
    ),
    "identifiers": "REQ-001: The function accepts two numbers.\nREQ-002: The function returns their sum.",
    "identifiers in bold": "- **FR-1**: accepts two numbers a and b\n- **FR-2**: returns the sum of both",
    "numbered requirements": "Requirement 1: The function takes two numbers.\nRequirement 2: It returns their sum.",
    "table": "| ID | Requirement |\n|----|-------------|\n| R1 | add returns the sum of a and b |",
    "table with shall": "| ID | Text |\n|---|---|\n| 1 | The function shall return the sum. |",
    "quoted": '"The function add must return the sum of a and b."',
    "quoted with shall": '"The function add shall return the sum of a and b."',
    "in backticks": "`The function add shall return the sum of a and b.`",
    "block quote": "> The function add shall return the sum of a and b.",
    "html": "<ul><li>The function <b>shall</b> return the sum of a and b.</li></ul>",
    "german": "Die Funktion muss a und b addieren und die Summe zurückgeben.",
    "german soll": "1. Die Funktion soll zwei Zahlen annehmen.\n2. Sie soll deren Summe zurückgeben.",
    "german heading": "Anforderungen:\n- nimmt zwei Zahlen an\n- gibt deren Summe zurück",
    "french": "La fonction doit renvoyer la somme de a et b.",
    "french devrait": "1. La fonction devrait accepter deux nombres.\n2. Elle devrait renvoyer leur somme.",
    "spanish": "La función debe devolver la suma de a y b.",
    "spanish deberá": "La función deberá aceptar dos números. Deberá devolver su suma.",
    "portuguese": "A função deve devolver a soma de a e b.",
    "italian": "La funzione deve restituire la somma di a e b.",
    "japanese": "関数addはaとbの和を返さなければならない。",
    "japanese plain": "1. 関数addは二つの数を受け取ること。\n2. 和を返すものとする。",
    "chinese": "函数add必须返回a与b的和。",
    "chinese ying": "该函数应返回两个数的和。",
    "korean": "함수 add는 a와 b의 합을 반환해야 한다.",
}

# Language of a fence: its content, which is requirements.
FENCED_FORMS: dict[str, str] = {
    "text": "The function add must return the sum of a and b.",
    "": "1. The function shall return the sum of a and b.",
    "markdown": "# Requirements\n\n- Takes two numbers\n- Returns their sum",
    "gherkin": "Feature: Addition\n  Scenario: Sum\n    Given a and b\n    When added\n    Then the sum shall be returned",
    "yaml": "requirements:\n  - id: R1\n    text: The function shall return the sum of a and b.",
    "yml": "requirements:\n  - accepts two numbers a and b\n  - returns the sum of both",
    "json": '{"requirements": ["The function shall accept a and b.", "The function shall return the sum."]}',
    "json5": '{"requirements": [\n  {"id": 1, "text": "Accepts two numbers."},\n  {"id": 2, "text": "Returns their sum."}\n]}',
    "xml": '<requirements>\n  <requirement id="1">The function shall return the sum.</requirement>\n</requirements>',
    "html": "<h2>Requirements</h2>\n<ol><li>Accepts two numbers.</li><li>Returns their sum.</li></ol>",
    "latex": "\\section{Requirements}\n\\begin{itemize}\n\\item The function shall return the sum.\n\\end{itemize}",
    "tex": "\\section*{Requirements}\n\\begin{enumerate}\n\\item accepts two numbers\n\\item returns their sum\n\\end{enumerate}",
}

# What it is: an answer that is no requirements.
OTHER_ANSWERS: dict[str, str] = {
    "question": "Shall I go on?",
    "question with should": "Should I also write tests for it?",
    "question about the function": "Must the function accept negative numbers?",
    "question in a sentence": "Before I write them, should add raise an error for strings?",
    "list of questions": "Open questions about the requirements:\n- Should it round?\n- Must it accept strings?",
    "we shall see": "We shall see.",
    "i will": "I will now write the requirements for the function.",
    "we must": "We must be careful here.",
    "talk about shall": 'Each has a "shall" now.',
    "talk about unquoted shall": "Every sentence uses shall now.",
    "talk about must": "I replaced should by must in each sentence.",
    "talk about the word": "The word shall is used in every requirement.",
    "greeting": "Good morning! Show me the code.",
    "below": "You will find it below.",
    "should work": "That should work now.",
    "it should work": "It should work on all platforms now.",
    "should pass": "The tests should pass now.",
    "changes will": "The changes will be live in a few minutes.",
    "fix should help": "I fixed it. This should help.",
    "you need to": "You need to install pytest first. Then you should run the tests.",
    "you must": "You must restart the server after that.",
    "let me know": "Let me know if anything should be different.",
    "explanation": "Requirement 1 says that it shall return the sum because callers rely on it.",
    "explanation with must": "Item 2 means that `add` must not change its arguments.",
    "explanation in two sentences": (
        "Requirement 1 says that the function must return the sum. It must do so because callers rely on it."
    ),
    "explanation of a choice": "I wrote that the function shall return an integer, since the code does.",
    "explanation of code": "The function takes a and b, adds them with the plus operator and returns the result.",
    "explanation of a call": "It first checks the list. Then it loops over it. The caller must pass a list. Last it sums up.",
    "affirmation": "Yes, the function must return the sum.",
    "saved": "I saved the requirements to requirements.md.",
    "saved as list": "I saved the requirements:\n- requirements.md",
    "dependencies": "Requirements:\n- Python\n- pytest",
    "thanks": "Glad I could help!",
    "code": "```python\ndef add(a, b):\n    # it shall work\n    return a + b\n```",
    "code with words": "Here is the code:\n```python\n# It must add\ndef add(a, b):\n    return a + b\n```\nIt should work now.",
    "unfenced code": "def add(a, b):\n    # it shall return the sum\n    return a + b",
    "shallow": "The copy is too shallow.",
    "german small talk": "Das sollte jetzt funktionieren.",
    "german question": "Soll ich noch Tests schreiben?",
    "french small talk": "Cela devrait fonctionner maintenant.",
    "spanish small talk": "Esto debería funcionar ahora.",
    "japanese small talk": "はい、コードを送ってください。",
    "chinese small talk": "现在应该可以了。",
    "next step": "As a next step, I can write tests.",
    "blank": " \n ",
}
