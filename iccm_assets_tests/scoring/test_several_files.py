"""A program of several files is reconstructed by endpoints, file by file, and judged (J6)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.sandbox.source_files import join_files, split_files
from iccm_assets.scoring.orchestra import load_orchestra
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.programs import CART, FILES, PRICES, TESTS
from iccm_assets_tests.factories.scorable_rows import put_conversation

TEXT = "`price` shall return what a name costs. `Cart` shall hold lines. `total` shall return the sum."
ROWS = sa.text("select * from iccm.requirements order by id")

pytestmark = pytest.mark.timeout(600)  # long for its few tests: it starts early


@contextmanager
def chat_server(answer: str, requests: list[dict[str, Any]]) -> Iterator[str]:
    """Serve one answer to every request; yield the value of ICCM_ORCHESTRA."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": answer}
            body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        yield f"openai:{url}#a,openai:{url}#b"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer_with(files: dict[str, str]) -> str:
    return "\n".join(f"```python {path}\n{text}```\n" for path, text in files.items())


@pytest.mark.parametrize("tests", [{"kind": "pytest", "files": {"test_shop.py": TESTS}}, None])
def test_a_package_of_two_modules_is_reconstructed_and_judged(
    engine: sa.Engine, settings: Settings, tests: Any
) -> None:
    source = join_files(FILES, CART)
    put_conversation(engine, settings, "shop", suite=tests, source=source, text=TEXT)
    if tests is None:
        assert record_missing_suites(engine, settings).sources == {"usable": 1}
    requests: list[dict[str, Any]] = []
    rebuilt = {"shop/prices.py": PRICES, "shop/cart.py": CART.replace("What is bought", "A cart")}
    with chat_server(answer_with(rebuilt), requests) as members:
        report = score_unscored(engine, load_orchestra(members, 2), settings)
    assert report.scored == 1
    with engine.connect() as conn:
        [row] = conn.execute(ROWS)
        members = (
            conn.execute(sa.text("select implementation_code from iccm.reconstructions")).scalars().all()
        )
    assert row.test_pass_rate == 1.0
    assert [[path for path, _, _ in split_files(code)] for code in members] == [list(rebuilt)] * 2
    prompts = {request["messages"][-1]["content"] for request in requests}
    assert len(prompts) == 1 and "the files shop/__init__.py, shop/prices.py, shop/cart.py." in prompts.pop()


def test_the_judge_takes_a_folder_and_files_in_a_batch(tmp_path: Path) -> None:
    for path, text in {**FILES, "tests/test_shop.py": TESTS}.items():
        (tmp_path / "program" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "program" / path).write_text(text)
    suite = {"kind": "pytest", "files": {"test_shop.py": TESTS}}
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    lines = [
        {"id": "files", "implementation": FILES, "suite": suite},
        {"id": "wrong", "implementation": {**FILES, "../x.py": ""}, "suite": suite},
    ]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judge = ("judge", "--suite", str(tmp_path / "suite.json"), "--json", "--implementation")
    done = iccm(*judge, str(tmp_path / "program"))
    assert done.returncode == 0 and json.loads(done.stdout)["test_pass_rate"] == 1.0, done.stderr
    (tmp_path / "empty").mkdir()
    assert "holds no Python file" in iccm(*judge, str(tmp_path / "empty")).stderr
    batch = iccm("judge", "--batch", str(tmp_path / "batch.jsonl"), "--json")
    first, second = map(json.loads, batch.stdout.splitlines())
    assert first["test_pass_rate"] == 1.0
    assert second["test_pass_rate"] is None and "../x.py" in second["reason"]
