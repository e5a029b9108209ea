"""A worker's message is read whole, however slowly it is written."""

import sys
import threading
import time
from pathlib import Path

import dagster as dg
import pytest

from iccm_assets.defs.pipes_reader import iter_complete_lines, pipes_client
from iccm_assets.defs.training.training_progress import with_progress

SLOW_WRITER = """
import json, time
from dagster_pipes import _make_message, open_dagster_pipes

with open_dagster_pipes() as pipes:
    path = pipes._message_channel._path
    line = json.dumps(_make_message("report_custom_message", {"payload": "x" * 9000}))
    with open(path, "a") as file:
        file.write(line[:8000])
        file.flush()
        time.sleep(0.5)
        file.write(line[8000:] + "\\n")
"""


def test_half_a_line_is_waited_for_and_a_killed_writers_is_left(tmp_path: Path) -> None:
    path = tmp_path / "messages"
    path.write_text('{"a":', encoding="utf-8")
    over = threading.Event()
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.extend(iter_complete_lines(str(path), over.is_set)))
    thread.start()
    with path.open("a", encoding="utf-8") as file:
        for part in (" 1}", "\nb\n", "c", "\nd without an end"):
            time.sleep(0.05)
            file.write(part)
            file.flush()
    over.set()
    thread.join(10)
    assert lines == ['{"a": 1}\n', "b\n", "c\n"]


@pytest.mark.parametrize("observed", [False, True], ids=["plain", "observing"])
def test_a_long_message_that_is_written_in_parts_arrives(observed: bool) -> None:
    received: list[object] = []

    @dg.asset
    def probe(context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient) -> dg.MaterializeResult:
        client = with_progress(pipes, context) if observed else pipes
        done = client.run(context=context, command=[sys.executable, "-c", SLOW_WRITER])
        received.extend(done.get_custom_messages())
        return dg.MaterializeResult()

    assert dg.materialize([probe], resources={"pipes": pipes_client()}).success
    assert received == ["x" * 9000]
