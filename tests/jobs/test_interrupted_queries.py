"""A signal in the middle of a query, which DuckDB turns into its own error."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A command that runs a slow query, but not a user's: like `status` and the table at the end of a
# run.
COMMAND = """
import sys
import duckdb
import clipmill.jobs.cli
import clipmill.jobs.status

def ask(*_, **__):
    connection = duckdb.connect(config={"threads": 1})
    print("asking", flush=True)
    while True:
        connection.execute("CREATE OR REPLACE TABLE t AS SELECT hash(i) AS h "
                           "FROM range(20000000) AS r(i)")

clipmill.jobs.status.print_status = ask
sys.argv = ["clipmill", "status", "anything"]
clipmill.jobs.cli.main()
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_a_query_ends_a_command_cleanly(sent: signal.Signals):
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as process:
        assert process.stdout.readline() == "asking\n"
        time.sleep(0.3)  # so that the query is running; otherwise less is tested
        process.send_signal(sent)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + sent
    assert "Traceback" not in said
    assert said == "Stopped. What is committed stays; run the same command to continue.\n"
