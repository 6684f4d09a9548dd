"""The deployments of prefect.yaml, checked without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.parameters import NightParameters
from flows.serve import DEPLOYMENTS, POOLS

PREFECT_YAML = yaml.safe_load(DEPLOYMENTS.read_text())
FLOW_FOLDER = DEPLOYMENTS.parent / "flows"


@pytest.mark.parametrize("deployment", PREFECT_YAML["deployments"], ids=lambda d: d["name"])
def test_a_deployment_names_a_flow_by_its_module_and_has_a_description(deployment: dict[str, Any]) -> None:
    module, function = deployment["entrypoint"].split(":")
    assert module == f"flows.{function}"
    text = (FLOW_FOLDER / f"{function}.py").read_text()
    assert f"@flow\ndef {function}(" in text
    assert deployment["description"]
    assert deployment["tags"]
    assert deployment["work_pool"]["name"] in POOLS
    assert deployment["work_pool"]["job_variables"]["working_dir"] == "."


def test_every_flow_has_a_deployment_of_its_name() -> None:
    flows = {path.stem for path in FLOW_FOLDER.glob("*.py") if f"@flow\ndef {path.stem}(" in path.read_text()}
    assert flows <= {deployment["name"] for deployment in PREFECT_YAML["deployments"]}


def test_scheduled_nights_are_live_and_their_parameters_are_in_the_deployment() -> None:
    scheduled = [deployment for deployment in PREFECT_YAML["deployments"] if "schedules" in deployment]
    assert len(scheduled) == 2
    for deployment in scheduled:
        night = NightParameters(**deployment["parameters"]["night"])
        assert (night.source, len(night.universes)) == ("live", 1)
        assert all("parameters" not in schedule and schedule["timezone"] for schedule in deployment["schedules"])


def test_no_absolute_path_is_deployed() -> None:
    assert str(Path.home()) not in DEPLOYMENTS.read_text()
    assert PREFECT_YAML["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
