"""The command `nightgraph serve`: a Prefect server with work pools, every deployment of prefect.yaml, and workers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from rich.console import Console

from flows.server import REPOSITORY, Child, Server, ServerError, is_answering, local_server

DEPLOYMENTS = REPOSITORY / "prefect.yaml"
POOLS = {"default": "every step but the fits", "gpu": "the fits, one flow run at a time"}
MAX_PARALLEL_RUNS = {"default": 4, "gpu": 1}

READY_MESSAGE = """\
Ready after {seconds:.0f} s at {ui}
  Run a night: {ui}/deployments, nightly, Run (the defaults are the simulated demo night)
  Logs: {home}/*.log
  Stop: Ctrl-C"""
NO_SCHEDULES_MESSAGE = (
    "Schedules: all off. Switch one on at its deployment's page, or all with --schedules: they pull live data."
)


def serve_until_stopped(home: Path, port: int, schedules: bool | None, console: Console) -> None:
    """Runs server and workers until Ctrl-C or SIGTERM. Raises ServerError when the server or a worker ends by itself.

    ``server_and_workers`` describes the other arguments; ``console`` receives the messages.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    started_s = time.perf_counter()
    console.print("Starting the Prefect server, deploying every flow, starting the workers ...")
    try:
        with server_and_workers(home, port, schedules) as (server, workers):
            schedule_ids = asyncio.run(active_schedules())
            console.print(
                READY_MESSAGE.format(seconds=time.perf_counter() - started_s, ui=server.ui_url, home=home), markup=False
            )
            console.print(f"Schedules: {len(schedule_ids)} on." if schedule_ids else NO_SCHEDULES_MESSAGE, markup=False)
            while True:
                for child in filter(None, (server.child, *workers)):
                    child.raise_if_ended()
                time.sleep(1)
    except KeyboardInterrupt:
        console.print("Stopped. A night that was running continues where it stopped when it is started again.")


@contextlib.contextmanager
def server_and_workers(
    home: Path, port: int | None = None, schedules: bool | None = None
) -> Iterator[tuple[Server, list[Child]]]:
    """A server with all deployments, and one worker per work pool, for use in a ``with`` block.

    After the block, every process that it started is stopped. ``port`` None means a free port. ``schedules`` switches
    every cron schedule on or off; None keeps the state of each schedule, and a new schedule is off. Enter the block
    before Prefect is imported. Raises ServerError when a server runs in ``home`` already.
    """
    if not DEPLOYMENTS.exists():
        raise ServerError(f"no {DEPLOYMENTS}: run this from a checkout of the repository")
    url_file = home / "server.url"
    if url_file.exists() and is_answering(url_file.read_text()):
        raise ServerError(f"running already at {url_file.read_text().removesuffix('/api')}: stop it there first")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(local_server(home, port))
        server.wait_until_ready()
        if server.child is not None:
            url_file.write_text(server.api_url)
            stack.callback(url_file.unlink, missing_ok=True)
            asyncio.run(mark_crashed_runs())
        asyncio.run(create_pools())
        active_ids_before = asyncio.run(active_schedules())
        workers = [stack.enter_context(pool_worker(pool, home / f"worker-{pool}.log")) for pool in POOLS]
        deploy(home / "deploy.log")
        asyncio.run(switch_schedules(active_ids_before if schedules is None else schedules))
        yield server, workers


@contextlib.contextmanager
def pool_worker(pool: str, log: Path) -> Iterator[Child]:
    """A worker process for use in a ``with`` block. It polls its pool every 3 s and runs this checkout's code."""
    arguments = ("worker", "start", "--pool", pool, "--limit", str(MAX_PARALLEL_RUNS[pool]))
    child = Child(*arguments, log=log, PREFECT_WORKER_QUERY_SECONDS="3")
    try:
        yield child
    finally:
        child.stop()


async def create_pools() -> None:
    """Creates the work pools that do not exist yet."""
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
    """Deploys every deployment of prefect.yaml. Raises ServerError with the end of ``log`` when that fails."""
    child = Child("--no-prompt", "deploy", "--all", log=log)
    if child.process.wait() != 0:
        child.raise_if_ended()


async def active_schedules() -> set[UUID]:
    """Ids of the schedules of all deployments that are switched on."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        deployments = await client.read_deployments()
    return {schedule.id for deployment in deployments for schedule in deployment.schedules if schedule.active}


async def switch_schedules(active: bool | set[UUID]) -> None:
    """Switches the schedules of this program's deployments on or off.

    A boolean applies to all of them. A set switches the schedules with these ids on and all others off.
    """
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        for deployment in await client.read_deployments():
            if not (deployment.entrypoint or "").startswith("flows."):  # a deployment of another program
                continue
            for schedule in deployment.schedules:
                is_active = active if isinstance(active, bool) else schedule.id in active
                if schedule.active != is_active:
                    await client.update_deployment_schedule(deployment.id, schedule.id, active=is_active)


async def mark_crashed_runs() -> None:
    """Marks flow runs as crashed that were unfinished when this server was last stopped.

    The workers of these runs stopped with the server. Without the mark, such a run would stay "running" and occupy the
    concurrency slot of its deployment permanently.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    unfinished = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(unfinished)):
            message = (
                "The server was stopped during this run; run it again with the same parameters to finish the night."
            )
            await client.set_flow_run_state(run.id, Crashed(message=message))
