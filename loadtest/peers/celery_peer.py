"""Celery, prefork 2, with a process for every task: executed/s, as one line of JSON.

    python celery_peer.py REDIS_PORT PROGRAM JOBS

The worker is `celery worker` and acks late, so that a task whose worker is killed is not lost. A task starts PROGRAM,
feeds it the payload and reads its output through pipes. Redis keeps nothing on disk, and nobody stores results.
"""

import json
import os
import subprocess
import sys
import time

import redis
from celery import Celery

PAYLOAD = b'"0123456789abcdef0123456789abcd"'
WARM_UP = 50
PATIENCE_S = 60

port, program = os.environ.get("PEER_REDIS") or sys.argv[1], os.environ.get("PEER_PROGRAM") or sys.argv[2]
app = Celery("celery_peer", broker=f"redis://127.0.0.1:{port}/1")
app.conf.task_ignore_result = True
app.conf.task_acks_late = True


@app.task(name="echo")
def echo(payload):
    done = subprocess.run([program], input=payload.encode(), capture_output=True, check=True)
    assert done.stdout == payload.encode()


def until_done(broker):
    """Nothing waits, and nothing is with a worker: it acks what it has done."""
    begun = time.monotonic()
    while broker.llen("celery") or broker.hlen("unacked"):
        if time.monotonic() - begun > PATIENCE_S:
            sys.exit("tasks are still open")
        time.sleep(0.002)


def main():
    jobs = int(sys.argv[3])
    environment = {**os.environ, "PEER_REDIS": port, "PEER_PROGRAM": program}
    command = [sys.executable, "-m", "celery", "-A", "celery_peer", "worker", "--pool", "prefork", "--concurrency", "2"]
    command += ["--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    here = os.path.dirname(os.path.abspath(__file__))
    worker = subprocess.Popen(command, cwd=here, env=environment, stdout=sys.stderr)
    try:
        broker = redis.Redis(port=int(port), db=1)
        payload = PAYLOAD.decode()
        # The worker has come when it has taken these.
        for _ in range(WARM_UP):
            echo.delay(payload)
        until_done(broker)
        begun = time.monotonic()
        for _ in range(jobs):
            echo.delay(payload)
        until_done(broker)
        print(json.dumps({"executed_per_s": jobs / (time.monotonic() - begun)}))
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
