"""What both lab commands make of a scenario: circuits, decoders, the exchange, permissions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hil.device.families import Models
from hil.errors import UsageError
from hil.node import setup
from hil.node.config import NodeConfig
from hil.node.endpoints import needs_cable
from hil.run.live_config import Predictions, node_config
from hil.run.parts import Decoders, build_circuits, build_decoders
from hil.scenario.load import Loaded, load_scenario
from hil.scenario.model import Scenario


@dataclass(frozen=True)
class Passport:
    """Where a lab command may go.

    Attributes:
        allow_remote: ``--allow-remote``.
        token: the shared token, ``None`` without one.
    """

    allow_remote: bool = False
    token: bytes | None = None

    def check(self, *hosts: str) -> None:
        """Refuse an address that leaves the machine without flag and token.

        Raises:
            UsageError: as ``hil.node.setup.demand_permission``.
        """
        for host in hosts:
            setup.demand_permission(host, self.token, allow_remote=self.allow_remote)


@dataclass(frozen=True)
class Lab:
    """One side of an exchange whose other side is somewhere else."""

    loaded: Loaded
    models: Models
    decoders: Decoders

    @classmethod
    def open(cls, path: Path, bind: str | None, overrides: Sequence[str]) -> Lab:
        """Load and check a scenario; its profile must be a live one.

        Raises:
            ScenarioError: the scenario is not valid.
            UsageError: the profile is virtual.
        """
        loaded = load_scenario(path, bind=bind, overrides=overrides)
        scenario = loaded.scenario
        if not loaded.profile.live:
            raise UsageError(
                "no frame travels in this profile",
                where="bind.use",
                got=f"{scenario.bind.use}, network {loaded.profile.network.backend}",
                allowed="a profile with a live network",
                fix="name one with --bind, such as --bind sil",
            )
        models = build_circuits(scenario)
        return cls(loaded, models, build_decoders(scenario, models))

    @property
    def scenario(self) -> Scenario:
        """The scenario."""
        return self.loaded.scenario

    def exchange(self, *, rack: str, node: str, passport: Passport) -> NodeConfig:
        """The exchange as either side configures it.

        The two sides need not share a clock, so the node decides no deadline: it answers with its
        primary, and the rack judges by its own clock. There is no fallback for the same reason.

        Raises:
            UsageError: an address is malformed, both are the same, or the network joins processes
                of one run only.
        """
        pace = self.loaded.profile.rack.pace
        predictions = Predictions(0, 0, 0)
        config = node_config(self.scenario, self.models, self.decoders, predictions, pace)
        changes: dict[str, object] = {
            "rack_address": rack,
            "node_address": node,
            "mode": "measure",
            "fallback": None,
            "allow_remote": passport.allow_remote,
        }
        config = config.model_copy(update=changes).checked()
        if needs_cable(config):
            raise UsageError(
                "this network joins two processes of one run",
                where="bind.profiles.*.network",
                got=f"{config.network} without a device",
                allowed="soft_roce, cudaq_udp, or a network with devices",
                fix="name rack_device and node_device, or write backend: soft_roce",
            )
        return config
