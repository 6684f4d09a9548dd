"""What `nightgraph serve` runs: a Prefect server with the work pools, every deployment of prefect.yaml, and workers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from rich.console import Console

from flows.server import REPOSITORY, Child, Server, ServerError, answers, local_server

DEPLOYMENTS = REPOSITORY / "prefect.yaml"
POOLS = {"default": "every step but the fits", "gpu": "the fits, one flow run at a time"}
RUNS_AT_ONCE = {"default": 4, "gpu": 1}

GREETING = """\
Ready after {seconds:.0f} s at {ui}
  Run a night: {ui}/deployments, nightly, Run (the defaults are the simulated demo night)
  Logs: {home}/*.log
  Stop: Ctrl-C"""
NO_SCHEDULES = (
    "Schedules: all off. Switch one on at its deployment's page, or all with --schedules: they pull live data."
)


def serve_until_stopped(home: Path, port: int, schedules: bool | None, screen: Console) -> None:
    """Runs a desk until Ctrl-C or SIGTERM; ServerError when one of its processes ends by itself."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    started = time.perf_counter()
    screen.print("Starting the Prefect server, deploying every flow, starting the workers ...")
    try:
        with serve_desk(home, port, schedules) as (server, workers):
            on = asyncio.run(schedules_on())
            screen.print(
                GREETING.format(seconds=time.perf_counter() - started, ui=server.ui_url, home=home), markup=False
            )
            screen.print(f"Schedules: {len(on)} on." if on else NO_SCHEDULES, markup=False)
            while True:
                for child in filter(None, (server.child, *workers)):
                    child.check()
                time.sleep(1)
    except KeyboardInterrupt:
        screen.print("Stopped. A night that was running goes on where it was when it is started again.")


@contextlib.contextmanager
def serve_desk(
    home: Path, port: int | None = None, schedules: bool | None = None
) -> Iterator[tuple[Server, list[Child]]]:
    """A server that has everything deployed, and one worker per pool; what it started is stopped after the block.

    ``schedules`` switches every cron schedule on or off; None leaves each as it was, and a new one off. Enter it before
    Prefect is imported.
    """
    if not DEPLOYMENTS.exists():
        raise ServerError(f"no {DEPLOYMENTS}: run this from a checkout of the repository")
    kept = home / "server.url"
    if kept.exists() and answers(kept.read_text()):
        raise ServerError(f"running already at {kept.read_text().removesuffix('/api')}: stop it there first")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(local_server(home, port))
        server.wait()
        if server.child is not None:
            kept.write_text(server.api_url)
            stack.callback(kept.unlink, missing_ok=True)
            asyncio.run(close_dead_runs())
        asyncio.run(create_pools())
        before = asyncio.run(schedules_on())
        workers = [stack.enter_context(worker(pool, home / f"worker-{pool}.log")) for pool in POOLS]
        deploy(home / "deploy.log")
        asyncio.run(switch_schedules(before if schedules is None else schedules))
        yield server, workers


@contextlib.contextmanager
def worker(pool: str, log: Path) -> Iterator[Child]:
    """A worker that asks for runs every three seconds; a run's code is that of this checkout."""
    start = ("worker", "start", "--pool", pool, "--limit", str(RUNS_AT_ONCE[pool]))
    child = Child(*start, log=log, PREFECT_WORKER_QUERY_SECONDS="3")
    try:
        yield child
    finally:
        child.stop()


async def create_pools() -> None:
    """Creates the work pools that are not there yet."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    async with get_client() as client:
        for name, description in POOLS.items():
            pool = WorkPoolCreate(name=name, type="process", description=description, base_job_template=template)
            with contextlib.suppress(ObjectAlreadyExists):
                await client.create_work_pool(pool)


def deploy(log: Path) -> None:
    """Deploys all of prefect.yaml; ServerError with Prefect's words when it refuses."""
    child = Child("--no-prompt", "deploy", "--all", log=log)
    if child.process.wait() != 0:
        child.check()


async def schedules_on() -> set[UUID]:
    """Ids of the schedules that are switched on."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return {s.id for d in await client.read_deployments() for s in d.schedules if s.active}


async def switch_schedules(on: bool | set[UUID]) -> None:
    """Switches the schedules of this program's deployments on or off: all alike, or on exactly those in the set."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        for deployment in await client.read_deployments():
            if not (deployment.entrypoint or "").startswith("flows."):  # a server may have others' too
                continue
            for schedule in deployment.schedules:
                active = on if isinstance(on, bool) else schedule.id in on
                if schedule.active != active:
                    await client.update_deployment_schedule(deployment.id, schedule.id, active=active)


async def close_dead_runs() -> None:
    """Marks as crashed what was running when this server was last stopped: its workers stopped with it.

    Such a run would stay "running" for ever and keep the concurrency slot of its deployment.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    unfinished = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(unfinished)):
            message = "The server was stopped while this ran; the same parameters again finish the night."
            await client.set_flow_run_state(run.id, Crashed(message=message))
